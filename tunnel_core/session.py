"""One conversation between an agent and a server: attach steps, numbering, confirmation, liveness.

No I/O, no clock, no randomness: time comes in as ``now`` (seconds, any origin), tokens as arguments.

1. Attach: ``hello`` -> ``welcome`` (or ``rejected``) -> ``use``. Until ``use`` nothing of the session
   moves. The steps are apart from the session, because a session outlives its carriers.
2. Packets that carry frames which must arrive are numbered from 1 and kept (as receipts) until the
   peer's ``ack`` covers them. Pings, pongs, bare confirmations and the attach steps have number 0.
3. A confirmation rides on any packet. If none leaves, a bare one does after ``ack_delay_seconds`` or
   ``ack_every_bytes``: few, because the price of the link is per message.
4. Liveness. The agent pings every interval; a pong that is missed too often means the session is gone.
   The server answers, and counts silence: one ping serves both ends. A peer that answers pings and
   confirms nothing for long is at fault too.
5. Only ``bye``, numbered and confirmed, ends a session on purpose.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from tunnel_core.frames import (
    Bye,
    Draining,
    Frame,
    Hello,
    Packet,
    Ping,
    Pong,
    Rejected,
    Unknown,
    Use,
    Welcome,
)
from tunnel_core.halves import PeerFault
from tunnel_core.limits import Limits
from tunnel_core.mux import Mux, Receipt
from tunnel_core.reasons import Reason, Refused

VERSION = 1


class ServerSteps:
    """The server's part of an attach. ``offer`` decides on a hello: a welcome or a rejection."""

    def __init__(self, offer: Callable[[Hello], Welcome | Rejected]) -> None:
        self._offer = offer
        self.hello: Hello | None = None
        self.welcome: Welcome | None = None
        self.rejected: Rejected | None = None
        self.attached = False

    def receive(self, frame: Frame) -> Frame | None:
        """Takes the next frame of the attach; returns the answer. Raises ``PeerFault``."""
        if isinstance(frame, Hello) and self.hello is None:
            self.hello = frame
            return self._answer(frame)
        if isinstance(frame, Use) and self.hello and self.welcome and frame.attempt == self.hello.attempt:
            self.attached = True
            return None
        raise PeerFault(
            Reason.PROTOCOL_ERROR, f"a {type(frame).__name__} frame before the attach was complete"
        )

    def _answer(self, hello: Hello) -> Frame:
        answer = self._offer(hello)
        if isinstance(answer, Welcome):
            self.welcome = answer
        else:
            self.rejected = answer
        return answer


class AgentSteps:
    """The agent's part of an attach. With ``probe`` it stops after the welcome: nothing is taken over."""

    def __init__(self, hello: Hello, *, probe: bool = False) -> None:
        self.hello = hello
        self.welcome: Welcome | None = None
        self.attached = False
        self._probe = probe

    def receive(self, frame: Frame) -> Frame | None:
        """Takes the server's answer; returns ``Use``. Raises ``Refused`` or ``PeerFault``."""
        if isinstance(frame, Rejected):
            raise AttachRejected(frame)
        if not isinstance(frame, Welcome) or self.welcome is not None:
            raise PeerFault(Reason.PROTOCOL_ERROR, f"a {type(frame).__name__} frame in answer to hello")
        if frame.version != VERSION:
            raise PeerFault(
                Reason.VERSION_MISMATCH, f"the server speaks version {frame.version}, not {VERSION}"
            )
        self.welcome = frame
        self.attached = not self._probe
        return Use(self.hello.attempt) if self.attached else None


class AttachRejected(Refused):
    """The server refused the attach; ``retry_after_seconds`` is its advice, 0 for none."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(rejected.reason, rejected.detail)
        self.retry_after_seconds = rejected.retry_after_ms / 1000


class _Sent(NamedTuple):
    number: int
    receipt: list[Receipt]
    bye: bool


class Session:
    """Numbering, confirmation and liveness of one attached session; its content is the mux's.

    ``pings``: this end sends the pings (the agent). ``welcome`` holds the intervals both go by.
    """

    def __init__(self, mux: Mux, limits: Limits, welcome: Welcome, *, pings: bool, now: float) -> None:
        self.mux = mux
        self.round_trip_seconds: float | None = None
        self.peer_bye: Bye | None = None
        self.peer_draining = False
        self.bye_confirmed = False
        self._limits = limits
        self._interval = welcome.ping_interval_ms / 1000
        self._missed_allowed = welcome.missed_pings
        self._pings = pings
        self._number = 0  # highest sent
        self._received = 0  # highest received in order
        self._acked = 0  # highest of ours that the peer confirmed
        self._ack_sent = 0
        self._unacked_bytes = 0
        self._ack_due = math.inf
        self._ack_overdue = False  # the carrier is to blame, not the clock: no deadline any more
        self._sent: deque[_Sent] = deque()
        self._control: list[Frame] = []  # numbered frames of the session itself
        self._unnumbered: list[Frame] = []  # pings and pongs
        self._heard = now
        self._progress = now  # when the peer last confirmed something, or had nothing to confirm
        self._ping_due = now if pings else math.inf
        self._ping_sent: float | None = None
        self._token = 0
        self._missed = 0
        self._cancelled = 0.0
        self._cancelled_at = now

    # Sending.

    def next_packet(self, now: float) -> Packet | None:
        """What the carrier should take next; None when there is nothing to say."""
        if self._unnumbered:
            frames, self._unnumbered = self._unnumbered, []
            return self._confirming(Packet(0, self._received, frames))
        frames, receipt = self.mux.take(self._limits.max_packet_bytes)
        bye = False
        if self._control:
            bye = any(type(frame) is Bye for frame in self._control)
            frames = [*self._control, *frames]
            self._control = []
        if frames:
            return self._numbered(frames, receipt, bye, now)
        if self._ack_overdue or self._ack_due <= now:
            return self._confirming(Packet(0, self._received, ()))
        return None

    @property
    def answers_pending(self) -> bool:
        """Whether a pong waits for the carrier to take it."""
        return bool(self._unnumbered)

    def _numbered(self, frames: list[Frame], receipt: list[Receipt], bye: bool, now: float) -> Packet:
        self._number += 1
        if not self._sent:
            self._progress = now
        self._sent.append(_Sent(self._number, receipt, bye))
        return self._confirming(Packet(self._number, self._received, frames))

    def _confirming(self, packet: Packet) -> Packet:
        self._ack_sent = self._received
        self._unacked_bytes = 0
        self._ack_due, self._ack_overdue = math.inf, False
        return packet

    def say_bye(self, reason: Reason, detail: str) -> None:
        """The session ends: ``bye`` goes out with what is pending."""
        self._control.append(Bye(reason, detail))

    def say_draining(self, deadline_seconds: float) -> None:
        """Tells the peer that no new streams will come or be taken."""
        self._control.append(Draining(int(deadline_seconds * 1000)))

    # Receiving.

    def receive(self, packet: Packet, size: int, now: float) -> None:
        """Takes a packet of ``size`` bytes in. Raises ``PeerFault``: then the session is over."""
        self._heard = now
        if packet.ack > self._acked:
            self._confirm(packet.ack, now)
        if packet.number:
            if packet.number <= self._received:
                return  # had it: a late copy
            if packet.number != self._received + 1:
                detail = f"packet {packet.number} after {self._received}"
                raise PeerFault(Reason.PROTOCOL_ERROR, detail)
            self._received = packet.number
            self._owe_ack(size, now)
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

    def _owe_ack(self, size: int, now: float) -> None:
        self._unacked_bytes += size
        if self._unacked_bytes >= self._limits.ack_every_bytes:
            self._ack_due = now
        elif self._ack_due == math.inf and not self._ack_overdue:
            self._ack_due = now + self._limits.ack_delay_seconds

    def _confirm(self, ack: int, now: float) -> None:
        if ack > self._number:
            raise PeerFault(Reason.ACK_OF_UNSENT, f"packet {ack} confirmed, {self._number} were sent")
        self._acked, self._progress = ack, now
        sent = self._sent
        while sent and sent[0].number <= ack:
            _, receipt, bye = sent.popleft()
            self.mux.confirmed(receipt)
            self.bye_confirmed = self.bye_confirmed or bye

    def _receive_ping(self, frame: Ping, now: float) -> None:
        self._unnumbered.append(Pong(frame.token))
        if frame.round_trip_us:
            self.round_trip_seconds = frame.round_trip_us / 1e6
        if len(self._unnumbered) > self._limits.max_frames_per_packet // 2:
            raise PeerFault(Reason.PROTOCOL_ERROR, "more pings than can be answered")

    def _receive_pong(self, frame: Pong, now: float) -> None:
        if self._ping_sent is None or frame.token != self._token:
            return  # late: its ping was given up
        self.round_trip_seconds = now - self._ping_sent
        self._ping_sent, self._missed = None, 0

    def _receive_bye(self, frame: Bye, now: float) -> None:
        self.peer_bye = frame
        self._ack_due = now

    def _receive_draining(self, frame: Draining, now: float) -> None:
        self.peer_draining = True

    # Time.

    def deadline(self) -> float:
        """When ``tick`` wants to be called next, in the clock of ``now``."""
        return min(self._ack_due, self._ping_due, self._silence_deadline(), self._stall_deadline())

    def _silence_deadline(self) -> float:
        # The pinging end finds silence by its pings; the other waits a little longer than two of them.
        if self._pings or not self._interval:
            return math.inf
        return self._heard + self._interval * self._missed_allowed + min(1.0, self._interval / 2)

    def _stall_deadline(self) -> float:
        return self._progress + self._limits.confirm_timeout_seconds if self._sent else math.inf

    def tick(self, now: float) -> bool:
        """Does what is due; True if there may be something to send. Raises ``PeerFault`` for a dead peer."""
        if now >= self._silence_deadline():
            raise PeerFault(Reason.PING_TIMEOUT, f"nothing heard for {now - self._heard:.0f} s")
        if now >= self._stall_deadline():
            detail = f"nothing confirmed for {now - self._progress:.0f} s"
            raise PeerFault(Reason.PEER_STALLED, detail)
        if now >= self._ping_due:
            self._ping(now)
            return True
        if now >= self._ack_due:
            self._ack_due, self._ack_overdue = math.inf, True
        return self._ack_overdue

    def _ping(self, now: float) -> None:
        if self._ping_sent is not None:
            # Whatever arrived since then came from the peer's program: only silence is a miss.
            self._missed = self._missed + 1 if self._heard < self._ping_sent else 0
            if self._missed >= self._missed_allowed:
                raise PeerFault(Reason.PING_TIMEOUT, f"{self._missed} pings were not answered")
        self._token += 1
        self._ping_sent = now
        self._ping_due = now + self._interval if self._interval else math.inf
        round_trip = int((self.round_trip_seconds or 0) * 1e6)
        self._unnumbered.append(Ping(self._token, round_trip))


def _check_unnumbered(packet: Packet) -> None:
    """What is not numbered is not confirmed, so nothing that has to arrive may travel so."""
    for frame in packet.frames:
        if not isinstance(frame, Ping | Pong | Unknown):
            detail = f"a {type(frame).__name__} frame in a packet without number"
            raise PeerFault(Reason.PROTOCOL_ERROR, detail)


_OWN_FRAMES: dict[type, Callable[..., None]] = {
    Ping: Session._receive_ping,
    Pong: Session._receive_pong,
    Bye: Session._receive_bye,
    Draining: Session._receive_draining,
}
