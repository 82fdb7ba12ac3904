"""One session from its first carrier to its end: ``SessionProtocol`` and the mux, with time and carriers.

1. Each carrier arrives as an ``Attachment`` that passed the attach. ``move_to`` moves the session to the new
   carrier and abandons the old one. Without a carrier the session is in grace: streams wait, and opens wait
   a few seconds. Then the next carrier arrives, or the grace ends and resets the streams.
2. The session is its carrier's port. The carrier calls ``packet_received``, ``next_packet`` and
   ``carrier_lost``; none of them blocks. ``run`` wakes at the deadlines.
3. A session ends once, with one reason, and resets its streams with that reason. If it has a carrier, it
   sends ``bye`` and abandons the carrier as soon as the peer acknowledges, or after a short timeout.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping

import trio

from tunnel_core.congestion.token_bucket import TokenBucket
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool, SendPool
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.carriage import Carriage
from tunnel_core.session.open_streams import OpenStreams, make_mux
from tunnel_core.session.pending_opens import PendingOpens
from tunnel_core.session.profiles import profile_of
from tunnel_core.session.protocol import SessionProtocol, UseRejectedError
from tunnel_core.session.state import Loss, SessionEvent, SessionState
from tunnel_core.session.statistics import SessionStatistics, take_statistics
from tunnel_core.session.timer import Timer, round_up_deadline
from tunnel_core.streams.tunnel_stream import TunnelStream
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Hello, Open, Service, Welcome

_log = logging.getLogger("tunnel_core.link")

_LATE_EVENT_SECONDS = 0.5
"""Interval of ``SessionEvent.LATE``."""
_MAX_BYE_SECONDS = 2.0
"""An ended session waits ``response_timeout_seconds`` for the exchange of ``bye`` and its ack, but no longer
than this. If the carrier closes before ``bye`` leaves, the peer waits for the whole grace."""


def _ignore(_: Session, __: SessionEvent) -> None:
    """Default of ``on_event``: do nothing."""


class Session:
    """One session of one node. The creator moves it to its first carrier and runs :meth:`run` in a nursery.

    ``opener`` is True at the server, which opens the streams. The agent's session calls ``on_open`` for each
    stream that the server opens. Both ends call ``on_event`` for each ``SessionEvent``. Neither callback may
    block or raise. ``cap`` limits the rate at which this end sends.
    """

    def __init__(
        self,
        hello: Hello,
        welcome: Welcome,
        *,
        opener: bool,
        node: str,
        limits: Limits,
        pool: CreditPool,
        send_pool: SendPool | None = None,
        cap: TokenBucket | None = None,
        on_open: Callable[[TunnelStream], None] | None = None,
        on_event: Callable[[Session, SessionEvent], None] = _ignore,
    ) -> None:
        self.node = node
        self.hello = hello
        self.welcome = welcome
        self.session_id = welcome.session.hex()[:8]  # names the session in logs on both ends
        self.instance, self.boot = hello.instance, hello.boot  # ids of the agent's process, and of the boot
        self.peer_address = ""
        self.attached_at = math.inf  # when the first carrier arrived, in trio's clock
        self.ended: tuple[Reason, str] | None = None
        self.lost: Loss | None = None  # while the session is in grace
        self.on_event = on_event
        self._opener = opener
        self._timer = Timer()
        self._pending_opens = PendingOpens(node, limits)
        self._streams = OpenStreams(node, self.session_id, self._pending_opens, on_open)
        self.streams: Mapping[int, TunnelStream] = self._streams.all  # not closed by their owners yet
        self._mux = make_mux(
            hello, welcome, limits, pool, send_pool, self._streams, self._timer, opener=opener
        )
        self.mux_streams: Collection[StreamState] = self._mux.streams.values()  # also those closed here
        self._carriage = Carriage(self._mux, self._timer)
        profile, now = profile_of(metered=hello.metered), trio.current_time()
        self._protocol = SessionProtocol(
            self._mux, limits, welcome, profile, pings=not opener, now=now, cap=cap
        )
        self._protocol.pause()
        self._ended = trio.Event()
        self._given_up = trio.Event()

    # State.

    @property
    def software(self) -> str:
        """Name and version of the peer's program."""
        return self.hello.software if self._opener else self.welcome.software

    @property
    def services(self) -> tuple[Service, ...]:
        return self.hello.services

    @property
    def is_draining(self) -> bool:
        return self._streams.draining or self._protocol.peer_draining  # new streams are refused

    @property
    def attachment(self) -> Attachment | None:
        """The attachment whose carrier moves the session's packets; None without a carrier."""
        return self._carriage.attachment

    @property
    def attached(self) -> bool:
        """Whether the session has a carrier and has not ended."""
        return self.attachment is not None and self.ended is None

    @property
    def state(self) -> SessionState:
        """The session's state; ``state.category`` is its effect on a new request."""
        if self.ended is not None:
            return SessionState.ENDED
        if self.attachment is None:
            return SessionState.GRACE
        is_late = trio.current_time() >= self._protocol.late_at()
        return SessionState.DEGRADED if is_late else SessionState.ATTACHED

    @property
    def is_silent(self) -> bool:
        """Whether an answer is late and no other packet arrived meanwhile."""
        return self.attachment is not None and trio.current_time() >= self._protocol.silent_at()

    @property
    def received(self) -> int:
        """Number of the newest packet received in order, which this end sends as ``have``."""
        return self._protocol.received

    def statistics(self) -> SessionStatistics:
        """Return the session's figures now. The cost grows with the number of streams."""
        return take_statistics(self._protocol, self._streams, self.lost, is_carried=bool(self.attachment))

    # Time.

    async def run(self) -> None:
        """Run the session's timers until the session has ended and its carrier is abandoned.

        Cancellation abandons the carrier at once, without ``bye``, and resets every stream.
        """
        try:
            while self.ended is None or trio.current_time() < self._timer.give_up_at:
                await self._timer.sleep(self._deadline())
                self._tick(trio.current_time())
        except Exception:
            self._finish(Reason.INTERNAL_ERROR, "")
            raise
        finally:
            self._finish(Reason.SESSION_LOST, "the session was abandoned")
            self._carriage.abandon()
            self.on_event = _ignore  # breaks a reference cycle: the owner may refer to the session
            self._given_up.set()

    def _deadline(self) -> float:
        if self.ended is not None:
            return self._timer.give_up_at
        if self.lost is not None:
            return min(self._timer.give_up_at, self._pending_opens.next_deadline)
        deadline = min(self._protocol.deadline(), self._pending_opens.next_deadline, self._late_event_at())
        return round_up_deadline(deadline, trio.current_time()) if self._opener else deadline

    def _late_event_at(self) -> float:
        """Return the time of the next ``SessionEvent.LATE``; infinity at the server, which has none."""
        return math.inf if self._opener else max(self._protocol.late_at(), self._timer.late_again_at)

    def _tick(self, now: float) -> None:
        if now >= self._timer.send_at:
            self._carriage.send_deferred()
            self._mux.wake()
        if self.ended is not None:
            return
        self._pending_opens.reset_overdue(now, self.lost)
        if self.lost is not None:
            if now >= self._timer.give_up_at:
                detail = f"the link did not come back within {now - self.lost.at:.0f} s: {self.lost.detail}"
                self._end_at_once(Reason.GRACE_EXPIRED, detail)
            return
        try:
            if self._protocol.tick(now):
                self._mux.wake()
        except ProtocolError as fault:
            if fault.reason is not Reason.PING_TIMEOUT:
                self.end(fault.reason, fault.detail)
                return
            self._lose(fault.reason, fault.detail)
        if now >= self._late_event_at():
            self._timer.late_again_at = now + _LATE_EVENT_SECONDS
            self.on_event(self, SessionEvent.LATE)

    # Carriers.

    def move_to(self, attachment: Attachment, have: int) -> None:
        """Move the session to the carrier of ``attachment`` and abandon the old carrier.

        The peer has received all packets up to number ``have``, or more. The session must not have ended.
        """
        now = trio.current_time()
        is_first = self.attached_at == math.inf
        self._carriage.replace(attachment)
        self.lost, self._timer.give_up_at = None, math.inf
        self.peer_address = attachment.peer_address
        self.attached_at = min(self.attached_at, now)
        if is_first and self._opener:
            # The time from welcome to use, until the first ping brings a better sample.
            self._protocol.liveness.round_trip_seconds = now - attachment.answered_at
        attachment.carry(self)
        try:
            self._protocol.move(have, now)
        except ProtocolError as fault:
            self._carriage.start()
            self.end(fault.reason, fault.detail)
            return
        if not self._opener and attachment.welcome.used:
            self._carriage.start_with_data(now)
        else:
            self._carriage.start()
            attachment.carrier.wake()
        self._pending_opens.resumed(now)
        self._timer.wake_now(now)  # the protocol's deadlines apply again
        if not is_first:
            self.on_event(self, SessionEvent.RESUMED)

    def carrier_lost(self, detail: str) -> None:
        """Enter the grace, or end a session that has none. The status of the call makes no difference."""
        self._lose(Reason.CARRIER_LOST, detail)

    def _lose(self, reason: Reason, detail: str) -> None:
        now = trio.current_time()
        # The grace counts from the last packet, not from the check that found the silence.
        is_silent = self.is_silent or reason is Reason.PING_TIMEOUT
        since = self._protocol.liveness.last_received_at if is_silent else now
        self._carriage.abandon()
        if self.ended is not None or not self.welcome.grace_ms:
            self._end_at_once(reason, detail)
            return
        self.lost = Loss(since, reason, detail)
        self._timer.give_up_at = since + self.welcome.grace_ms / 1000
        self._protocol.pause()
        self._pending_opens.lost(now)
        self._timer.wake_now(now)  # the deadline of the grace applies
        self.on_event(self, SessionEvent.LOST)

    def ping_now(self) -> None:
        """Send a ping at once, unless one already waits for its pong."""
        self._protocol.ping_now(trio.current_time())
        self._mux.wake()

    async def wait_ended(self) -> tuple[Reason, str]:
        """Wait for the end of the session; return its reason and detail."""
        await self._ended.wait()
        assert self.ended is not None
        return self.ended

    async def wait_given_up(self) -> None:
        """Wait until :meth:`run` returns: the peer acknowledged ``bye``, or its time is over."""
        await self._given_up.wait()

    async def wait_no_streams(self) -> None:
        """Wait until all streams are closed and the peer has acknowledged their data, or the session ends."""
        while self.ended is None and (self._streams.all or self._mux.streams):
            await self._streams.wait_change()

    # Calls of the carrier.

    def packet_received(self, data: bytes) -> None:
        """Process one packet. Never raise: an error of the peer ends the session with its reason."""
        protocol, now = self._protocol, trio.current_time()
        try:
            protocol.receive(decode_packet(data), len(data), now)
            if protocol.peer_bye is not None and self.ended is None:
                self._finish(protocol.peer_bye.reason, protocol.peer_bye.detail)
            if protocol.bye_acked:
                self._give_up_now()
            elif protocol.may_send(now):  # an ack may have made room in the window or in memory
                self._mux.wake()
            elif (deadline := protocol.deadline()) < self._timer.wake_at:
                self._timer.wake_by(deadline)
        except ProtocolError as fault:
            self.end(fault.reason, fault.detail)
        except UseRejectedError as rejected:
            if rejected.reason is Reason.STALE_ATTEMPT:  # the agent has used a newer carrier
                self._lose(rejected.reason, rejected.detail)
            else:
                self._end_at_once(rejected.reason, rejected.detail)
        except Exception:
            _log.exception("a packet from %s could not be handled", self.node)
            self.end(Reason.INTERNAL_ERROR)

    def next_packet(self) -> bytes | None:
        """Return the bytes of the next packet; None if no frame is due. Never raise."""
        protocol, timer, now = self._protocol, self._timer, trio.current_time()
        try:
            if timer.send_at != math.inf:
                if now < timer.send_at and protocol.may_defer(now):
                    return None  # the carrier has room, but every pending frame may wait
                self._carriage.send_deferred()
            packet = protocol.next_packet(now)
            if packet is None:
                if protocol.send_budget.due < timer.wake_at:
                    timer.wake_by(protocol.send_budget.due)
                return None
            if not self._opener and protocol.late_at() < timer.wake_at:
                timer.wake_by(self._late_event_at())
            if protocol.grace_is_short:
                timer.wake_by(protocol.unanswered_until())
            data = encode_packet(*packet)
            if protocol.send_budget.cap is not None:
                protocol.send_budget.cap.take(len(data), now)
            return data
        except Exception:
            _log.exception("no packet could be made for %s", self.node)
            self._end_at_once(Reason.INTERNAL_ERROR, "")  # the peer accepts no number after a gap
            return None

    # Streams.

    def open(
        self,
        target: Target,
        *,
        user: str,
        entrance: str,
        early_data: bytes = b"",
        verb: str = "",
        target_tls: bool = False,
        on_opened: Callable[[], None] | None = None,
    ) -> TunnelStream:
        """Open a stream from the server to ``target`` without waiting for the agent's dial.

        Data sent before ``wait_opened`` returns is early data: the agent writes it right after the dial.
        With ``target_tls`` the agent uses TLS to a target that is an https service. ``on_opened`` is called
        when the agent has reached the target. If the agent does not answer in time, the stream is reset with
        ``OPEN_TIMEOUT``. Raises ``Refused`` if the session has ended or takes no new streams.
        """
        if self.ended is not None:
            raise Refused(Reason.NODE_NOT_ATTACHED, f"node {self.node} is not attached: {self.ended[1]}")
        if self.is_draining:
            raise self._streams.why_draining()
        request = Open(0, str(target), user, entrance, 0, verb=verb, target_tls=target_tls)
        stream = self._streams.open(self._mux.open(request, early_data), on_opened)
        self._timer.wake_by(self._pending_opens.add(stream, trio.current_time(), self.lost))
        return stream

    # Ending.

    def drain(self, deadline_seconds: float) -> None:
        """Refuse new streams, let running ones finish, and send ``draining`` to the peer."""
        if self.ended is None and not self._streams.draining:
            self._streams.draining = True
            self._protocol.send_draining(deadline_seconds)
            self._mux.wake()

    def end(self, reason: Reason, detail: str = "") -> None:
        """End the session: reset every stream and send ``bye`` with the reason. Idempotent, never blocks."""
        if self.ended is not None:
            return
        self._protocol.send_bye(reason, detail)
        self._finish(reason, detail)
        if self.attachment is None:
            self._give_up_now()  # no carrier for bye; an agent that resumes learns that the session is gone
        self._mux.wake()

    def _finish(self, reason: Reason, detail: str) -> None:
        if self.ended is not None:
            return
        self.ended = (reason, detail or reason.meaning)
        # The sentence names the node, because kubectl shows its user nothing else.
        self._mux.fail(reason, f"the session with node {self.node} ended: {detail or reason.meaning}")
        seconds = min(self._protocol.liveness.response_timeout_seconds, _MAX_BYE_SECONDS)
        self._timer.give_up_at = trio.current_time() + seconds
        self._timer.wake_by(self._timer.give_up_at)
        self._ended.set()
        self._streams.note_change()

    def _end_at_once(self, reason: Reason, detail: str) -> None:
        """End without ``bye``, because no carrier would deliver it."""
        self._finish(reason, detail)
        self._give_up_now()

    def _give_up_now(self) -> None:
        self._timer.give_up_at = trio.current_time()
        self._timer.wake_now(self._timer.give_up_at)
