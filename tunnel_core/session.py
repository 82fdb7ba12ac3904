"""One conversation between an agent and a server: numbering, confirmation, liveness, and its moves.

No I/O, no clock, no randomness: time comes in as ``now`` (seconds, any origin), tokens as arguments.

1. Packets that carry frames which must arrive are numbered from 1 and kept (as receipts) until the
   peer's ``ack`` covers them. Pings, pongs, bare confirmations and the attach steps have number 0.
2. A session outlives its carriers. ``pause``: there is none, so nothing is due. ``move``: there is a new
   one, and the peer said what it has. Packets are never sent again, their content is: what the peer
   has is confirmed, all other receipts go back to the mux, and numbers rise on. So the first number on
   a carrier may leave some out, a number that was taken back confirms nothing, and no sample of a
   round trip or a rate is of two carriers (Karn).
3. A confirmation rides on any packet; ``confirming.py`` says when a bare one leaves. What may be under
   way, and what may leave, ``flight.py`` and ``bucket.py`` say (``allowance.py`` asks both).
4. Liveness. The agent pings every interval, and every second while streams move bytes or a pong is late.
   Silence for some of these seconds means that the carrier is gone; the server, which answers, knows from
   each ping how soon the next one is due: one ping serves both ends. A peer that answers pings and confirms
   nothing for long is at fault.
   What is unconfirmed for ``late_seconds`` and four round trips is late: a reason to look for another
   carrier, and nothing more.
5. Only ``bye``, numbered and confirmed, ends a session on purpose.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tunnel_core.allowance import Allowance
from tunnel_core.bucket import Bucket
from tunnel_core.confirming import Confirming
from tunnel_core.errors import PeerFault
from tunnel_core.flight import Flight, Unbounded
from tunnel_core.frames import (
    Bye,
    Draining,
    Frame,
    Packet,
    Ping,
    Pong,
    Rejected,
    Unknown,
    Welcome,
)
from tunnel_core.limits import Limits
from tunnel_core.mux import Mux
from tunnel_core.mux_stream import Receipt
from tunnel_core.profiles import Profile
from tunnel_core.reasons import OF_A_SESSION, Reason

_PACKET_BYTES, _FRAME_BYTES = 48, 12
"""What a packet and each frame take on the wire besides content: TLS record, HTTP/2, gRPC, fields."""
_LATE_ROUND_TRIPS = 4
_DEAD_PATIENCES = 5
"""Times what makes an answer late: a change of cells takes a second or three, and it is the same link after.
Waiting costs nothing, as other carriers are tried meanwhile; it is only not called grace yet."""
_DOUBT_SECONDS = 1.0
_MOMENT_SECONDS = 0.5
_MOST_PINGS = 32
"""Unanswered at a time."""
_MOST_ROUND_TRIP_SECONDS = 60.0
"""A ping may tell any number, and with a large one nothing would ever be late (RFC 6298: 60 s or more)."""


class UseRejected(Exception):  # noqa: N818 - named by what happened
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


class Session:
    """Numbering, confirmation and liveness of one attached session; its content is the mux's.

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
        cap: Bucket | None = None,
    ) -> None:
        self.mux = mux
        self.flight = Flight(limits, now) if limits.flight_limit else Unbounded(limits, now)
        self.round_trip_seconds: float | None = None
        self._smooth_round_trip = 0.0  # 0: none yet
        self._smooth_before = 0.0  # without the samples of this moment
        self._sampled_at = -math.inf
        self.peer_bye: Bye | None = None
        self.peer_draining = False
        self.bye_confirmed = False
        self.heard_at = now  # when the carrier of the moment last brought anything
        self._limits = limits
        self._profile = profile
        self._allowance = Allowance(self.flight, cap)
        self._confirming = Confirming(limits, profile.ack_delay_seconds)
        self._interval = welcome.ping_interval_ms / 1000
        self._missed_allowed = welcome.missed_pings
        self._pings = pings
        self._number = 0  # highest sent
        self._received = 0  # highest received in order
        self._acked = 0  # highest of ours that the peer confirmed
        self._ack_overdue = False  # the carrier is to blame, not the clock: no deadline any more
        self._sent: deque[_Sent] = deque()
        self._control: list[Frame] = []  # numbered frames of the session itself
        self._unnumbered: list[Frame] = []  # pings and pongs
        self._carried = True
        self._moved = False  # to a new carrier: its first number may leave some out
        self._progress = now  # when the peer last confirmed something, or had nothing to confirm
        self._bytes_at = -math.inf  # when a stream last moved anything
        self._ping_often = min(self._interval, profile.active_ping_seconds)
        self._last_ping = -math.inf
        self._pings_sent: deque[tuple[int, float]] = deque()  # token and time of those without a pong
        self._token = 0
        self._in_doubt = False  # the silence was long enough, and is looked at once more
        self._benefit = 0.0  # seconds more for it
        self._learn_silence()
        self._cancelled = 0.0
        self._cancelled_at = now

    # Sending.

    def next_packet(self, now: float) -> Packet | None:
        """What the carrier should take next; None when there is nothing to say."""
        if self._unnumbered:
            frames, self._unnumbered = self._unnumbered, []
            return self._packet(0, frames)
        held = self.mux.unconfirmed
        frames, receipt = self._take(now)
        control, self._control = self._control, []
        if control:
            frames = [*control, *frames]
        if frames:
            size = self.mux.unconfirmed - held + _PACKET_BYTES + _FRAME_BYTES * len(frames)
            return self._numbered(frames, _Sent(self._number + 1, receipt, control, now), size)
        if self._ack_overdue or self._confirming.due <= now:
            return self._packet(0, ())
        return None

    def is_patient(self, now: float) -> bool:
        """Whether all that there is to say waits for company: an end for the next open, for one."""
        return not (self.mux.presses or self.mux.has_data or self._owes(now))

    def _owes(self, now: float) -> bool:
        """Whether there is something of the session's own to say."""
        due = self._ack_overdue or self._confirming.due <= now
        return bool(due or self._unnumbered or self._control)

    def may_send(self, now: float) -> bool:
        """Whether there is something to say now that was not before, or could not be said.

        What the streams say besides data has asked for its packet itself, or waits for company. If there is
        nothing, ``deadline`` says when to ask again.
        """
        if self._owes(now):
            return True
        if not self.mux.has_data:
            return False
        budgets = self._allowance.ask(now)
        return budgets is not None and self.mux.may_send(*budgets)

    @property
    def room_at(self) -> float:
        """When there may be room for what ``next_packet`` found none for; ``deadline`` knows it too."""
        return self._allowance.due

    def _take(self, now: float) -> tuple[list[Frame], list[Receipt]]:
        """What the streams say in this packet."""
        mux = self.mux
        self._allowance.due = math.inf
        if not mux.has_work:
            return [], []
        budgets = self._allowance.ask(now)
        if budgets is None:
            self.flight.note_idle()  # the cap sets the pace: that is no news of the link
            return [], []
        taken = mux.take(*budgets)
        if not mux.has_data:
            self.flight.note_idle()
        return taken

    def _numbered(self, frames: list[Frame], sent: _Sent, size: int) -> Packet:
        self._number = sent.number
        if not self._sent:
            self._progress = sent.at
        self._bytes_at = sent.at
        self._sent.append(sent)
        return self._packet(sent.number, frames, self.flight.sent(sent.number, size, sent.at))

    def _packet(self, number: int, frames: Sequence[Frame], confirm_now: bool = False) -> Packet:
        self._ack_overdue = False
        return Packet(number, self._received, frames, self._confirming.sent(), confirm_now)

    def say_bye(self, reason: Reason, detail: str) -> None:
        """The session ends: ``bye`` goes out with what is pending."""
        self._control.append(Bye(reason, detail))

    def say_draining(self, deadline_seconds: float) -> None:
        """Tells the peer that no new streams will come or be taken."""
        self._control.append(Draining(int(deadline_seconds * 1000)))

    # Receiving.

    def receive(self, packet: Packet, size: int, now: float) -> None:
        """Takes a packet of ``size`` bytes in.

        Raises ``PeerFault``: then the session is over. Raises ``UseRejected``: then its last move is void.
        """
        self.heard_at = now
        if packet.ack > self._acked:
            self._check_ack(packet.ack)
            self.flight.confirmed(packet.ack, packet.arrived, now)
            self._confirm(packet.ack, now)
        if packet.number:
            if packet.number <= self._received:
                return  # had it: a late copy
            if packet.number != self._received + 1 and not self._moved:
                detail = f"packet {packet.number} after {self._received}"
                raise PeerFault(Reason.PROTOCOL_ERROR, detail)
            self._received, self._moved, self._bytes_at = packet.number, False, now
            self._confirming.received(size, now, at_once=packet.confirm_now)
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
            raise PeerFault(Reason.OPEN_FLOOD, f"more than {budget} opens a second were reset unanswered")

    def _check_ack(self, ack: int) -> None:
        if ack > self._number:
            raise PeerFault(Reason.ACK_OF_UNSENT, f"packet {ack} confirmed, {self._number} were sent")

    def _confirm(self, ack: int, now: float) -> None:
        self._acked, self._progress = ack, now
        sent = self._sent
        while sent and sent[0].number <= ack:
            one = sent.popleft()
            self.mux.confirmed(one.receipt)
            if one.control:
                self.bye_confirmed = self.bye_confirmed or any(type(frame) is Bye for frame in one.control)

    def _receive_ping(self, frame: Ping, now: float) -> None:
        self._unnumbered.append(Pong(frame.token))
        self._learn_silence()
        if frame.round_trip_us:
            self._note_round_trip(frame.round_trip_us / 1e6, now)
        if len(self._unnumbered) > self._limits.max_frames_per_packet // 2:
            raise PeerFault(Reason.PROTOCOL_ERROR, "more pings than can be answered")

    def _learn_silence(self) -> None:
        """How long the peer's pings may stay out; they are here now."""
        self._in_doubt, self._benefit = False, 0.0
        self._dead_soon, self._dead_late = (
            between + self._dead_seconds for between in (self._ping_often, self._interval)
        )
        # The ends see the last byte at different times: near the end of activity nothing is expected soon.
        self._busy_seconds = self._profile.active_seconds - self._ping_often - self.patience_seconds

    @property
    def _is_ping_due_soon(self) -> bool:
        return self._bytes_at + self._busy_seconds >= self.heard_at

    def _receive_pong(self, frame: Pong, now: float) -> None:
        sent = self._pings_sent
        if not sent or not sent[0][0] <= frame.token <= sent[-1][0]:
            return  # late: its ping was given up
        while sent[0][0] < frame.token:
            sent.popleft()
        self._note_round_trip(now - sent.popleft()[1], now)
        self._in_doubt = False

    def _note_round_trip(self, sample: float, now: float) -> None:
        sample = min(sample, _MOST_ROUND_TRIP_SECONDS)
        self.round_trip_seconds = sample
        # Of the pongs that come together after an outage the newest counts alone.
        if now >= self._sampled_at + _MOMENT_SECONDS:
            self._smooth_before, self._sampled_at = self._smooth_round_trip, now
        before = self._smooth_before or sample
        # RFC 6298's weight for what is longer: one pong that sat out an outage must not make us patient for
        # half a minute. What is shorter counts for more, as a link that was slow need not be so again.
        self._smooth_round_trip = before + (sample - before) / (8 if sample > before else 2)

    def _receive_rejected(self, frame: Rejected, now: float) -> None:
        if not self._pings:
            raise PeerFault(Reason.PROTOCOL_ERROR, "only a server rejects")
        raise UseRejected(frame.reason, frame.detail)

    def _receive_bye(self, frame: Bye, now: float) -> None:
        if not self._pings and frame.reason not in OF_A_SESSION:  # from a node, which may be taken over
            frame = frame._replace(reason=Reason.SESSION_LOST)
        self.peer_bye = frame
        self._confirming.received(0, now, at_once=True)

    def _receive_draining(self, frame: Draining, now: float) -> None:
        self.peer_draining = True

    # From carrier to carrier.

    @property
    def received(self) -> int:
        """What a hello, welcome or use says as ``have``."""
        return self._received

    @property
    def acked(self) -> int:
        """Number of the newest packet that the peer confirmed."""
        return self._acked

    def pause(self) -> None:
        """The carrier is gone: nothing is due, and nobody is at fault, until ``move``."""
        self._carried = False
        self._unnumbered.clear()
        self._pings_sent.clear()

    def move(self, have: int, now: float) -> None:
        """Goes on over a new carrier to a peer that received everything up to ``have``, or more.

        Raises ``PeerFault`` if it claims what was never sent.
        """
        if have > self._acked:
            self._check_ack(have)
            self._confirm(have, now)
        self._take_back()
        self.flight.reset(now)
        self.pause()
        self._carried = self._moved = True
        self._progress = self.heard_at = now
        self._last_ping = -math.inf
        self._learn_silence()
        self._confirming.sent()  # what it knows of the old carrier is worth nothing on the new one
        self._ack_overdue = self._received > 0

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
        soon = min(self._confirming.due, self._allowance.due, self._ping_due())
        return min(soon, self._silence_deadline(), self._stall_deadline())

    def _ping_due(self) -> float:
        if not self._pings or not self._interval:
            return math.inf
        soon = self._last_ping + self._ping_often
        if self._bytes_at + self._profile.active_seconds >= soon:
            return soon
        if self._pings_sent:
            soon = max(soon, self._pings_sent[0][1] + self.patience_seconds)
            return min(soon, self._last_ping + self._interval)
        return self._last_ping + self._interval

    def late_at(self) -> float:
        """When what waits for its confirmation or pong will be late, if nothing changes."""
        if not self._carried:
            return math.inf
        return min(self._unanswered_since, self._ping_expected()) + self.patience_seconds

    @property
    def _unanswered_since(self) -> float:
        return min(
            self._sent[0].at if self._sent else math.inf,
            self._pings_sent[0][1] if self._pings_sent else math.inf,
        )

    def late_since(self, now: float) -> float:
        """When the oldest of what is late was sent; infinity if nothing is."""
        since = self._unanswered_since
        return since if self._carried and now >= since + self.patience_seconds else math.inf

    def _ping_expected(self) -> float:
        """Server: when the agent's next ping is due; else never."""
        if self._pings or not self._interval:
            return math.inf
        if self._is_ping_due_soon:
            return max(self.heard_at, self._bytes_at) + self._ping_often
        return self.heard_at + self._interval

    def quiet_at(self) -> float:
        """The same, unless something else was heard meanwhile: then there is a carrier, however slow."""
        return max(self.late_at(), self.heard_at + self.patience_seconds)

    @property
    def patience_seconds(self) -> float:
        """How long an answer may take before it is late."""
        return max(self._limits.late_seconds, _LATE_ROUND_TRIPS * self._smooth_round_trip)

    @property
    def _dead_seconds(self) -> float:
        """How long a silence must be in which answers are due."""
        often = self._missed_allowed * self._ping_often + self.patience_seconds
        return min(self._missed_allowed * self._interval, max(often, _DEAD_PATIENCES * self.patience_seconds))

    def _silence_deadline(self) -> float:
        # The pinging end finds silence by its pings; the other waits a little longer than they do.
        if self._pings or not self._interval:
            return math.inf
        if self._is_ping_due_soon:
            return max(self.heard_at, self._bytes_at) + self._dead_soon + self._benefit
        return self.heard_at + self._dead_late + self._benefit

    def _stall_deadline(self) -> float:
        return self._progress + self._limits.confirm_timeout_seconds if self._sent else math.inf

    def tick(self, now: float) -> bool:
        """Does what is due; True if there may be something to send.

        Raises ``PeerFault``: ``PING_TIMEOUT`` says that the carrier is dead, any other that the peer is.
        """
        if not self._carried:
            return False
        if now >= self._silence_deadline():
            self._doubt(now - self.heard_at)
            self._benefit = now - self._silence_deadline() + _DOUBT_SECONDS
        if now >= self._stall_deadline():
            detail = f"nothing confirmed for {now - self._progress:.0f} s"
            raise PeerFault(Reason.PEER_STALLED, detail)
        if now >= self._ping_due():
            self._ping(now)
            return True
        if now >= self._confirming.due:
            self._confirming.due, self._ack_overdue = math.inf, True
        return self._may_go_on(now) or self._ack_overdue

    def _may_go_on(self, now: float) -> bool:
        """Whether there may be room now for what found none. Said once: the carrier may be busy."""
        if now < self._allowance.due:
            return False
        self._allowance.due = math.inf
        return True

    def _ping(self, now: float) -> None:
        if self._pings_sent:
            # Whatever arrives comes from the peer's program: only silence counts.
            silence = now - max(self._pings_sent[0][1], self.heard_at)
            if silence >= self._dead_seconds:
                self._doubt(silence)
        self._send_ping(now)

    def _doubt(self, silence: float) -> None:
        """A silence is taken for death at the second look only: this program may have been away itself."""
        if self._in_doubt:
            raise PeerFault(Reason.PING_TIMEOUT, f"nothing heard for {silence:.0f} s")
        self._in_doubt = True

    def ping_now(self, now: float) -> None:
        """Asks the carrier of the moment whether it is alive, unless it is being asked already."""
        if self._carried and not self._pings_sent:
            self._send_ping(now)

    def _send_ping(self, now: float) -> None:
        self._last_ping = now
        if self._unnumbered or len(self._pings_sent) >= _MOST_PINGS:
            return  # one is about to leave already, or enough wait for an answer
        self._token += 1
        self._pings_sent.append((self._token, now))
        round_trip = int((self.round_trip_seconds or 0) * 1e6)
        self._unnumbered.append(Ping(self._token, round_trip))


def _check_unnumbered(packet: Packet) -> None:
    """What is not numbered is not confirmed, so nothing that has to arrive may travel so."""
    for frame in packet.frames:
        if not isinstance(frame, Ping | Pong | Rejected | Unknown):
            detail = f"a {type(frame).__name__} frame in a packet without number"
            raise PeerFault(Reason.PROTOCOL_ERROR, detail)


_OWN_FRAMES: dict[type, Callable[..., None]] = {
    Ping: Session._receive_ping,
    Pong: Session._receive_pong,
    Rejected: Session._receive_rejected,
    Bye: Session._receive_bye,
    Draining: Session._receive_draining,
}
