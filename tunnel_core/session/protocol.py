"""Protocol of one session: packet numbers, acknowledgements, and moves between carriers.

The module has no I/O, clock or randomness: the caller passes the time as ``now`` (seconds, any origin).

1. A packet with frames that must arrive has a number, from 1 on. This end keeps its receipt until the peer's
   ``ack`` covers the number. Pings, pongs, bare acks and the frames of the attach travel under number 0.
2. A session outlives its carriers. After ``pause`` there is no carrier, and nothing is due. ``move``
   continues over a new carrier and learns from the peer's ``have`` what has arrived. The mux gets all other
   receipts back and retransmits their content in new packets, because a packet itself is never retransmitted.
   Numbers keep rising. So the first number on a carrier may skip some, and an ack of a number that was taken
   back acknowledges nothing. No sample of a round trip or a rate spans two carriers (Karn's algorithm).
3. Every packet carries an ack; ``congestion/acks.py`` decides when a bare ack leaves.
   ``congestion/send_budget.py`` limits what may leave, by the congestion controller and by the rate cap.
4. ``liveness.py`` decides whether the peer is late or dead. A peer that answers pings but acknowledges
   nothing for ``ack_timeout_seconds`` is stalled: that ends the session.
5. Only a numbered ``bye``, once acknowledged, ends a session on purpose.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tunnel_core.congestion.acks import AckScheduler
from tunnel_core.congestion.controller import CongestionController, NoLimit
from tunnel_core.congestion.send_budget import SendBudget
from tunnel_core.congestion.token_bucket import TokenBucket
from tunnel_core.limits import Limits
from tunnel_core.mux.mux import Mux
from tunnel_core.mux.stream_state import Receipt
from tunnel_core.reasons import OF_A_SESSION, Reason
from tunnel_core.session.liveness import Liveness
from tunnel_core.session.profiles import Profile
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import (
    Bye,
    Draining,
    Frame,
    Malformed,
    Packet,
    Ping,
    Pong,
    Rejected,
    Unknown,
    Welcome,
)

_PACKET_BYTES, _FRAME_BYTES = 48, 12
"""Overhead on the wire of a packet and of each frame: TLS record, HTTP/2, gRPC, fields."""


class UseRejectedError(Exception):
    """Raised when the server refuses to move to the carrier that the agent uses; ``reason`` is the cause."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail or reason.meaning


class _Sent(NamedTuple):
    number: int
    receipt: list[Receipt]
    control: list[Frame]  # the session's own frames
    at: float


class SessionProtocol:
    """Packet numbers and acknowledgements of one session; the mux makes the streams' frames.

    ``pings`` is True at the agent, which sends the pings. ``welcome`` and ``profile`` hold the intervals that
    both ends use. ``cap`` limits the rate at which this end sends.
    """

    def __init__(
        self,
        mux: Mux,
        limits: Limits,
        welcome: Welcome,
        profile: Profile,
        *,
        pings: bool,
        now: float,
        cap: TokenBucket | None = None,
    ) -> None:
        self.mux = mux
        self.congestion = CongestionController(limits, now) if limits.flight_limit else NoLimit(limits, now)
        self.liveness = Liveness(limits, welcome, profile, pings=pings, now=now)
        self.send_budget = SendBudget(self.congestion, cap)
        """Its ``due`` is when ``next_packet`` may find room for the data that has none now."""
        self.peer_bye: Bye | None = None
        self.peer_draining = False
        self.bye_acked = False
        self.received = 0
        """Number of the newest packet received in order; hello, welcome and use carry it as ``have``."""
        self.acked = 0
        """Number of the newest packet that the peer acknowledged."""
        self._grace_seconds = welcome.grace_ms / 1000
        self.grace_is_short = 0 < welcome.grace_ms <= welcome.ping_interval_ms * (welcome.missed_pings + 1)
        """Whether a silence may last for the whole grace before pings detect the silence."""
        self._limits = limits
        self._ack_scheduler = AckScheduler(limits, profile.ack_delay_seconds)
        self._pings = pings
        self._number = 0  # highest sent
        self._ack_overdue = False  # the ack waits for the carrier only, so it has no deadline any more
        self._sent: deque[_Sent] = deque()
        self._control: list[Frame] = []  # the session's own numbered frames
        self._unnumbered: list[Frame] = []  # pings and pongs
        self._has_carrier = True
        self._may_skip = False  # the first number on a new carrier may skip some
        self._progress_at = now  # when the peer last acknowledged a packet, or had none to acknowledge
        self._cancelled_opens = 0.0
        self._cancelled_at = now

    # Sending.

    def next_packet(self, now: float) -> Packet | None:
        """Return the next packet for the carrier; None if no frame and no ack is due."""
        if self._unnumbered:
            frames, self._unnumbered = self._unnumbered, []
            return self._unnumbered_packet(frames)
        self.send_budget.due = math.inf
        unacked_before = self.mux.unacked_bytes
        receipt: list[Receipt] = []
        frames = self._take_stream_frames(receipt, now) if self.mux.has_work else []
        control, self._control = self._control, []
        if control:
            frames = [*control, *frames]
        if not frames:
            is_ack_due = self._ack_overdue or self._ack_scheduler.due <= now
            return self._unnumbered_packet(()) if is_ack_due else None
        size = self.mux.unacked_bytes - unacked_before + _PACKET_BYTES + _FRAME_BYTES * len(frames)
        if not self._sent:
            self._progress_at = now
        self.liveness.bytes_at = now
        self._number = number = self._number + 1
        self._sent.append(_Sent(number, receipt, control, now))
        self._ack_overdue = False
        ack_immediately = self.congestion.sent(number, size, now)
        return Packet(number, self.received, frames, self._ack_scheduler.sent(), ack_immediately)

    def _take_stream_frames(self, receipt: list[Receipt], now: float) -> list[Frame]:
        """Return the streams' frames for a packet; add to ``receipt`` what to retransmit after a loss."""
        budgets = self.send_budget.packet_budgets(now)
        if budgets is None:
            self.congestion.note_app_limited()  # the cap limits the rate: no sample of the path
            return []
        frames, receipt[:] = self.mux.take(*budgets)
        if not self.mux.has_data:
            self.congestion.note_app_limited()
        return frames

    def _unnumbered_packet(self, frames: Sequence[Frame]) -> Packet:
        self._ack_overdue = False
        return Packet(0, self.received, frames, self._ack_scheduler.sent())

    def may_defer(self, now: float) -> bool:
        """Whether every pending frame may wait for other frames, as the end of a stream waits for an open."""
        mux = self.mux
        is_due = self._ack_overdue or self._ack_scheduler.due <= now
        return not (mux.urgent or mux.has_data or is_due or self._unnumbered or self._control)

    def may_send(self, now: float) -> bool:
        """Whether an ack, a control frame or data can leave now.

        Streams wake the carrier themselves for frames other than data, or defer these frames. After False,
        ``deadline`` returns when to ask again.
        """
        if self._ack_overdue or self._ack_scheduler.due <= now or self._unnumbered or self._control:
            return True
        if not self.mux.has_data:
            return False
        budgets = self.send_budget.packet_budgets(now)
        return budgets is not None and self.mux.may_send(*budgets)

    def send_bye(self, reason: Reason, detail: str) -> None:
        """Queue ``bye``, which ends the session; it leaves with the other pending frames."""
        self._control.append(Bye(reason, detail))

    def send_draining(self, deadline_seconds: float) -> None:
        """Queue ``draining``: this end neither opens nor accepts new streams."""
        self._control.append(Draining(int(deadline_seconds * 1000)))

    # Receiving.

    def receive(self, packet: Packet | Malformed, size: int, now: float) -> None:
        """Process a packet of ``size`` bytes.

        Raises ``ProtocolError``, after which the caller must end the session, and ``UseRejectedError`` if the
        server refuses the agent's last ``use``.
        """
        if isinstance(packet, Malformed):
            raise ProtocolError(Reason.MALFORMED_PACKET, packet.detail)
        self.liveness.last_received_at = now
        if packet.ack > self.acked:
            self._handle_ack(packet.ack, now, packet.arrived)
        if packet.number:
            if packet.number <= self.received:
                return  # a duplicate
            if packet.number != self.received + 1 and not self._may_skip:
                detail = f"packet {packet.number} after {self.received}"
                raise ProtocolError(Reason.PROTOCOL_ERROR, detail)
            self.received, self._may_skip, self.liveness.bytes_at = packet.number, False, now
            self._ack_scheduler.received(size, now, at_once=packet.ack_immediately)
        else:
            _check_unnumbered(packet)
        for frame in packet.frames:
            handler = _OWN_FRAMES.get(type(frame))
            if handler is None:
                self.mux.receive(frame)
            else:
                handler(self, frame, now)
        if self.mux.opens_cancelled:
            self._limit_cancelled_opens(now)

    def _limit_cancelled_opens(self, now: float) -> None:
        """Limit the rate of streams that are opened and reset at once: each costs a dial (CVE-2023-44487)."""
        count, self.mux.opens_cancelled = self.mux.opens_cancelled, 0
        elapsed, self._cancelled_at = now - self._cancelled_at, now
        limit = self._limits.max_opens_per_second
        self._cancelled_opens = max(0.0, self._cancelled_opens - elapsed * limit) + count
        if self._cancelled_opens > limit:
            raise ProtocolError(Reason.OPEN_FLOOD, f"more than {limit} opens a second were reset unanswered")

    def _handle_ack(self, ack: int, now: float, arrived: int | None = None) -> None:
        """Release the receipts up to ``ack``; ``arrived`` is the time of that packet in the peer's clock."""
        if ack > self._number:
            raise ProtocolError(Reason.ACK_OF_UNSENT, f"packet {ack} acknowledged, {self._number} were sent")
        if arrived is not None:
            self.congestion.acked(ack, arrived, now)
        self.acked, self._progress_at = ack, now
        unacked = self._sent
        while unacked and unacked[0].number <= ack:
            sent = unacked.popleft()
            self.mux.acked(sent.receipt)
            if sent.control:
                self.bye_acked = self.bye_acked or any(type(frame) is Bye for frame in sent.control)

    def _receive_ping(self, frame: Ping, now: float) -> None:
        self._unnumbered.append(Pong(frame.token))
        self.liveness.ping_received(frame.round_trip_us, now)
        if len(self._unnumbered) > self._limits.max_frames_per_packet // 2:
            raise ProtocolError(Reason.PROTOCOL_ERROR, "more pings than can be answered")

    def _receive_pong(self, frame: Pong, now: float) -> None:
        self.liveness.pong_received(frame.token, now)

    def _receive_rejected(self, frame: Rejected, now: float) -> None:
        if not self._pings:
            raise ProtocolError(Reason.PROTOCOL_ERROR, "an agent may not send rejected")
        raise UseRejectedError(frame.reason, frame.detail)

    def _receive_bye(self, frame: Bye, now: float) -> None:
        if not self._pings and frame.reason not in OF_A_SESSION:  # a compromised node may send any reason
            frame = frame._replace(reason=Reason.SESSION_LOST)
        self.peer_bye = frame
        self._ack_scheduler.received(0, now, at_once=True)

    def _receive_draining(self, frame: Draining, now: float) -> None:
        self.peer_draining = True

    # Moves between carriers.

    def pause(self) -> None:
        """Stop all deadlines until ``move``, because the carrier is lost."""
        self._has_carrier = False
        self._unnumbered.clear()
        self.liveness.pause()

    def move(self, have: int, now: float) -> None:
        """Continue over a new carrier; the peer has received all packets up to number ``have``, or more.

        Raises ``ProtocolError`` if ``have`` is above the highest number sent.
        """
        if have > self.acked:
            self._handle_ack(have, now)
        self._take_back()
        self.congestion.reset(now)
        self._unnumbered.clear()
        self._has_carrier = self._may_skip = True
        self._progress_at = now
        self.liveness.start(now)
        self._ack_scheduler.sent()  # forget the arrivals over the old carrier
        self._ack_overdue = self.received > 0

    def _take_back(self) -> None:
        """Queue the content of all unacknowledged packets again."""
        unacked = list(self._sent)
        self._sent.clear()
        self._control = [frame for sent in unacked for frame in sent.control] + self._control
        self.mux.take_back(sent.receipt for sent in unacked)

    # Time.

    def deadline(self) -> float:
        """Return when to call ``tick`` next, in the clock of ``now``."""
        if not self._has_carrier:
            return math.inf
        deadline = min(self._ack_scheduler.due, self.send_budget.due, self.liveness.deadline())
        if self._sent:
            deadline = min(deadline, self._progress_at + self._limits.ack_timeout_seconds)
        return min(deadline, self.unanswered_until()) if self.grace_is_short else deadline

    def unanswered_until(self) -> float:
        """Return when a silent carrier is dead by a short grace, before pings detect the silence."""
        if not self.grace_is_short:
            return math.inf
        return max(self.silent_at(), self.liveness.last_received_at + self._grace_seconds)

    def late_at(self) -> float:
        """Return when the oldest unanswered packet or ping will be late; infinity if none is unanswered."""
        if not self._has_carrier:
            return math.inf
        return self.liveness.late_at(self._sent[0].at if self._sent else math.inf)

    def late_since(self, now: float) -> float:
        """Return when the oldest late packet or ping was sent; infinity if none is late."""
        if not self._has_carrier:
            return math.inf
        return self.liveness.late_since(self._sent[0].at if self._sent else math.inf, now)

    def silent_at(self) -> float:
        """Like ``late_at``, but every received packet postpones it: a slow carrier is not a dead one."""
        return max(self.late_at(), self.liveness.last_received_at + self.liveness.response_timeout_seconds)

    def tick(self, now: float) -> bool:
        """Do what is due; return whether a packet may be ready to send.

        Raises ``ProtocolError``: with ``PING_TIMEOUT`` the carrier is dead, with any other reason the peer
        is.
        """
        if not self._has_carrier:
            return False
        if self.grace_is_short and now >= self.unanswered_until():
            raise ProtocolError(Reason.PING_TIMEOUT, "no answer within the grace")
        is_ping_due = self.liveness.check(now)
        if self._sent and now >= self._progress_at + self._limits.ack_timeout_seconds:
            detail = f"no packet acknowledged for {now - self._progress_at:.0f} s"
            raise ProtocolError(Reason.PEER_STALLED, detail)
        if is_ping_due:
            self._ping(now)
            return True
        if now >= self._ack_scheduler.due:
            self._ack_scheduler.due, self._ack_overdue = math.inf, True
        return self._budget_due(now) or self._ack_overdue

    def _budget_due(self, now: float) -> bool:
        """Return whether data may find room again; True only once, because the carrier may be busy."""
        if now < self.send_budget.due:
            return False
        self.send_budget.due = math.inf
        return True

    def ping_now(self, now: float) -> None:
        """Queue a ping at once, unless one already waits for its pong."""
        if self._has_carrier and not self.liveness.is_asking:
            self._ping(now)

    def _ping(self, now: float) -> None:
        frame = self.liveness.ping(now, is_queued=bool(self._unnumbered))
        if frame is not None:
            self._unnumbered.append(frame)


def _check_unnumbered(packet: Packet) -> None:
    """Refuse frames that must arrive, because a packet without number is never acknowledged."""
    for frame in packet.frames:
        if not isinstance(frame, Ping | Pong | Rejected | Unknown):
            detail = f"a {type(frame).__name__} frame in a packet without number"
            raise ProtocolError(Reason.PROTOCOL_ERROR, detail)


_OWN_FRAMES: dict[type, Callable[..., None]] = {
    Ping: SessionProtocol._receive_ping,
    Pong: SessionProtocol._receive_pong,
    Rejected: SessionProtocol._receive_rejected,
    Bye: SessionProtocol._receive_bye,
    Draining: SessionProtocol._receive_draining,
}
