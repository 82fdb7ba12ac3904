"""One conversation between an agent and a server: numbering, confirmation, and its moves.

No I/O, no clock, no randomness: time comes in as ``now`` (seconds, any origin), tokens as arguments.

1. Packets that carry frames which must arrive are numbered from 1 and kept (as receipts) until the
   peer's ``ack`` covers them. Pings, pongs, bare confirmations and the attach steps have number 0.
2. A session outlives its carriers. ``pause``: there is none, so nothing is due. ``move``: there is a new
   one, and the peer said what it has. Packets are never sent again, their content is: what the peer
   has is confirmed, all other receipts go back to the mux, and numbers rise on. So the first number on
   a carrier may leave some out, a number that was taken back confirms nothing, and no sample of a
   round trip or a rate is of two carriers (Karn).
3. A confirmation rides on any packet; ``congestion/acks.py`` says when a bare one leaves. What may be under
   way, and what may leave, ``controller`` and ``token_bucket`` there say (``send_budget`` asks both).
4. Whether the peer is alive, or late, ``liveness.py`` says. A peer that answers pings and confirms nothing
   for long is at fault.
5. Only ``bye``, numbered and confirmed, ends a session on purpose.
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
"""What a packet and each frame take on the wire besides content: TLS record, HTTP/2, gRPC, fields."""


class UseRejectedError(Exception):
    """The server did not move to the carrier that the agent uses; ``reason`` says why."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail or reason.meaning


class _Sent(NamedTuple):
    number: int
    receipt: list[Receipt]
    control: list[Frame]  # of the session itself
    at: float


class SessionProtocol:
    """Numbering and confirmation of one attached session; its content is the mux's.

    ``pings``: this end sends the pings (the agent). ``welcome`` and ``profile`` hold the intervals both go
    by. ``cap`` bounds what this end sends.
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
        self.flight = CongestionController(limits, now) if limits.flight_limit else NoLimit(limits, now)
        self.liveness = Liveness(limits, welcome, profile, pings=pings, now=now)
        self.allowance = SendBudget(self.flight, cap)
        """Its ``due`` says when there may be room for what ``next_packet`` found none for."""
        self.peer_bye: Bye | None = None
        self.peer_draining = False
        self.bye_acked = False
        self.received = 0
        """Number of the newest packet received in order: what a hello, welcome or use says as ``have``."""
        self.acked = 0
        """Number of the newest packet that the peer confirmed."""
        self._grace_seconds = welcome.grace_ms / 1000
        self.grace_is_short = 0 < welcome.grace_ms <= welcome.ping_interval_ms * (welcome.missed_pings + 1)
        """Whether a silence may last for the whole grace before pings find it."""
        self._limits = limits
        self._ack_scheduler = AckScheduler(limits, profile.ack_delay_seconds)
        self._pings = pings
        self._number = 0  # highest sent
        self._ack_overdue = False  # the carrier is to blame, not the clock: no deadline any more
        self._sent: deque[_Sent] = deque()
        self._control: list[Frame] = []  # numbered frames of the session itself
        self._unnumbered: list[Frame] = []  # pings and pongs
        self._carried = True
        self._moved = False  # to a new carrier: its first number may leave some out
        self._progress = now  # when the peer last confirmed something, or had nothing to confirm
        self._cancelled = 0.0
        self._cancelled_at = now

    # Sending.

    def next_packet(self, now: float) -> Packet | None:
        """What the carrier should take next; None when there is nothing to say."""
        if self._unnumbered:
            frames, self._unnumbered = self._unnumbered, []
            return self._bare(frames)
        self.allowance.due = math.inf
        held = self.mux.unconfirmed
        receipt: list[Receipt] = []
        frames = self._take(receipt, now) if self.mux.has_work else []
        control, self._control = self._control, []
        if control:
            frames = [*control, *frames]
        if not frames:
            return self._bare(()) if self._ack_overdue or self._ack_scheduler.due <= now else None
        size = self.mux.unconfirmed - held + _PACKET_BYTES + _FRAME_BYTES * len(frames)
        if not self._sent:
            self._progress = now
        self.liveness.bytes_at = now
        self._number = number = self._number + 1
        self._sent.append(_Sent(number, receipt, control, now))
        self._ack_overdue = False
        ack_immediately = self.flight.sent(number, size, now)
        return Packet(number, self.received, frames, self._ack_scheduler.sent(), ack_immediately)

    def _take(self, receipt: list[Receipt], now: float) -> list[Frame]:
        """What the streams say in this packet; ``receipt`` gets what must come back if it is lost."""
        budgets = self.allowance.packet_budgets(now)
        if budgets is None:
            self.flight.note_app_limited()  # the cap sets the pace: that is no news of the link
            return []
        frames, receipt[:] = self.mux.take(*budgets)
        if not self.mux.has_data:
            self.flight.note_app_limited()
        return frames

    def _bare(self, frames: Sequence[Frame]) -> Packet:
        """A packet without number."""
        self._ack_overdue = False
        return Packet(0, self.received, frames, self._ack_scheduler.sent())

    def may_defer(self, now: float) -> bool:
        """Whether all that there is to say waits for company: an end for the next open, for one."""
        mux = self.mux
        is_due = self._ack_overdue or self._ack_scheduler.due <= now
        return not (mux.urgent or mux.has_data or is_due or self._unnumbered or self._control)

    def may_send(self, now: float) -> bool:
        """Whether there is something to say now that was not before, or could not be said.

        What the streams say besides data has asked for its packet itself, or waits for company. If there is
        nothing, ``deadline`` says when to ask again.
        """
        if self._ack_overdue or self._ack_scheduler.due <= now or self._unnumbered or self._control:
            return True
        if not self.mux.has_data:
            return False
        budgets = self.allowance.packet_budgets(now)
        return budgets is not None and self.mux.may_send(*budgets)

    def say_bye(self, reason: Reason, detail: str) -> None:
        """The session ends: ``bye`` goes out with what is pending."""
        self._control.append(Bye(reason, detail))

    def say_draining(self, deadline_seconds: float) -> None:
        """Tells the peer that no new streams will come or be taken."""
        self._control.append(Draining(int(deadline_seconds * 1000)))

    # Receiving.

    def receive(self, packet: Packet | Malformed, size: int, now: float) -> None:
        """Takes a packet of ``size`` bytes in.

        Raises ``ProtocolError``: then the session is over. Raises ``UseRejectedError``: then its last move is
        void.
        """
        if isinstance(packet, Malformed):
            raise ProtocolError(Reason.MALFORMED_PACKET, packet.detail)
        self.liveness.last_received_at = now
        if packet.ack > self.acked:
            self._confirm(packet.ack, now, packet.arrived)
        if packet.number:
            if packet.number <= self.received:
                return  # had it: a late copy
            if packet.number != self.received + 1 and not self._moved:
                detail = f"packet {packet.number} after {self.received}"
                raise ProtocolError(Reason.PROTOCOL_ERROR, detail)
            self.received, self._moved, self.liveness.bytes_at = packet.number, False, now
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
            self._count_cancelled(now)

    def _count_cancelled(self, now: float) -> None:
        """Streams opened and reset at once cost dials: bounded in time (CVE-2023-44487)."""
        count, self.mux.opens_cancelled = self.mux.opens_cancelled, 0
        elapsed, self._cancelled_at = now - self._cancelled_at, now
        budget = self._limits.max_opens_per_second
        self._cancelled = max(0.0, self._cancelled - elapsed * budget) + count
        if self._cancelled > budget:
            raise ProtocolError(Reason.OPEN_FLOOD, f"more than {budget} opens a second were reset unanswered")

    def _confirm(self, ack: int, now: float, arrived: int | None = None) -> None:
        """The peer has everything up to ``ack``; with ``arrived``, its clock when that one came."""
        if ack > self._number:
            raise ProtocolError(Reason.ACK_OF_UNSENT, f"packet {ack} confirmed, {self._number} were sent")
        if arrived is not None:
            self.flight.acked(ack, arrived, now)
        self.acked, self._progress = ack, now
        sent = self._sent
        while sent and sent[0].number <= ack:
            one = sent.popleft()
            self.mux.acked(one.receipt)
            if one.control:
                self.bye_acked = self.bye_acked or any(type(frame) is Bye for frame in one.control)

    def _receive_ping(self, frame: Ping, now: float) -> None:
        self._unnumbered.append(Pong(frame.token))
        self.liveness.ping_received(frame.round_trip_us, now)
        if len(self._unnumbered) > self._limits.max_frames_per_packet // 2:
            raise ProtocolError(Reason.PROTOCOL_ERROR, "more pings than can be answered")

    def _receive_pong(self, frame: Pong, now: float) -> None:
        self.liveness.pong_received(frame.token, now)

    def _receive_rejected(self, frame: Rejected, now: float) -> None:
        if not self._pings:
            raise ProtocolError(Reason.PROTOCOL_ERROR, "only a server rejects")
        raise UseRejectedError(frame.reason, frame.detail)

    def _receive_bye(self, frame: Bye, now: float) -> None:
        if not self._pings and frame.reason not in OF_A_SESSION:  # from a node, which may be taken over
            frame = frame._replace(reason=Reason.SESSION_LOST)
        self.peer_bye = frame
        self._ack_scheduler.received(0, now, at_once=True)

    def _receive_draining(self, frame: Draining, now: float) -> None:
        self.peer_draining = True

    # From carrier to carrier.

    def pause(self) -> None:
        """The carrier is gone: nothing is due, and nobody is at fault, until ``move``."""
        self._carried = False
        self._unnumbered.clear()
        self.liveness.pause()

    def move(self, have: int, now: float) -> None:
        """Goes on over a new carrier to a peer that received everything up to ``have``, or more.

        Raises ``ProtocolError`` if it claims what was never sent.
        """
        if have > self.acked:
            self._confirm(have, now)
        self._take_back()
        self.flight.reset(now)
        self._unnumbered.clear()
        self._carried = self._moved = True
        self._progress = now
        self.liveness.start(now)
        self._ack_scheduler.sent()  # what it knows of the old carrier is worth nothing on the new one
        self._ack_overdue = self.received > 0

    def _take_back(self) -> None:
        sent = list(self._sent)
        self._sent.clear()
        self._control = [frame for one in sent for frame in one.control] + self._control
        self.mux.take_back(one.receipt for one in sent)

    # Time.

    def deadline(self) -> float:
        """When ``tick`` wants to be called next, in the clock of ``now``."""
        if not self._carried:
            return math.inf
        soon = min(self._ack_scheduler.due, self.allowance.due, self.liveness.deadline())
        if self._sent:
            soon = min(soon, self._progress + self._limits.confirm_timeout_seconds)
        return min(soon, self.unanswered_until()) if self.grace_is_short else soon

    def unanswered_until(self) -> float:
        """When a carrier that answers nothing is given up, if that is sooner than pings find the silence."""
        if not self.grace_is_short:
            return math.inf
        return max(self.quiet_at(), self.liveness.last_received_at + self._grace_seconds)

    def late_at(self) -> float:
        """When what waits for its confirmation or pong will be late, if nothing changes."""
        if not self._carried:
            return math.inf
        return self.liveness.late_at(self._sent[0].at if self._sent else math.inf)

    def late_since(self, now: float) -> float:
        """When the oldest of what is late was sent; infinity if nothing is."""
        if not self._carried:
            return math.inf
        return self.liveness.late_since(self._sent[0].at if self._sent else math.inf, now)

    def quiet_at(self) -> float:
        """The same as ``late_at``, unless something else was heard meanwhile: then there is a carrier."""
        return max(self.late_at(), self.liveness.last_received_at + self.liveness.response_timeout_seconds)

    def tick(self, now: float) -> bool:
        """Does what is due; True if there may be something to send.

        Raises ``ProtocolError``: ``PING_TIMEOUT`` says that the carrier is dead, any other that the peer is.
        """
        if not self._carried:
            return False
        if self.grace_is_short and now >= self.unanswered_until():
            raise ProtocolError(Reason.PING_TIMEOUT, "nothing was answered")
        is_ping_due = self.liveness.check(now)
        if self._sent and now >= self._progress + self._limits.confirm_timeout_seconds:
            detail = f"nothing confirmed for {now - self._progress:.0f} s"
            raise ProtocolError(Reason.PEER_STALLED, detail)
        if is_ping_due:
            self._ping(now)
            return True
        if now >= self._ack_scheduler.due:
            self._ack_scheduler.due, self._ack_overdue = math.inf, True
        return self._may_go_on(now) or self._ack_overdue

    def _may_go_on(self, now: float) -> bool:
        """Whether there may be room now for what found none. Said once: the carrier may be busy."""
        if now < self.allowance.due:
            return False
        self.allowance.due = math.inf
        return True

    def ping_now(self, now: float) -> None:
        """Asks the carrier of the moment whether it is alive, unless it is being asked already."""
        if self._carried and not self.liveness.is_asking:
            self._ping(now)

    def _ping(self, now: float) -> None:
        frame = self.liveness.ping(now, is_queued=bool(self._unnumbered))
        if frame is not None:
            self._unnumbered.append(frame)


def _check_unnumbered(packet: Packet) -> None:
    """What is not numbered is not confirmed, so nothing that has to arrive may travel so."""
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
