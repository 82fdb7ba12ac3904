"""One session for all of its life: joins the state machines (session, mux) to time, carriers and streams.

1. Carriers come and go, each as an ``Attachment`` that passed the attach. ``move_to`` makes one the link's
   own and abandons the one before. When it is lost the link is in grace: streams wait, opens wait a
   little, and either the next carrier comes or the grace ends and the streams with it.
2. The link is its carrier's port: ``packet_received``, ``next_packet`` and ``carrier_lost`` are called from
   wherever the carrier runs, and none of them blocks. ``run`` keeps the time.
3. A link ends once, with one reason: its streams are reset with it, the peer is told by ``bye`` if there
   is a carrier, and that is given up when the peer confirmed it, or soon.
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

_TELL_LATE_SECONDS = 0.5
_MOST_FAREWELL_SECONDS = 2.0
"""How long an ended link waits at most for its bye to be confirmed, or for the peer to hear our confirmation.
It waits for as long as an answer may take: what is severed before that loses a bye that was not sent yet, and
then the peer waits for the whole grace."""


def _ignore(_: Session, __: SessionEvent) -> None:
    """For a link whose events nobody wants."""


class Session:
    """One session of one node. ``opener``: this end opens streams, which is the server.

    ``on_open`` (agent) is called for each stream that the server opens, ``on_event`` for what befalls the
    link; neither may block or raise. ``cap`` bounds what this end sends. Whoever makes a link moves it to
    its first carrier and runs :meth:`run` in a nursery.
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
        self.session_id = welcome.session.hex()[:8]
        """Names the session in logs on both ends."""
        self.instance, self.boot = hello.instance, hello.boot
        """Which run of the agent this is, and which machine it runs on, since that was started."""
        self.peer_address = ""
        self.attached_at = math.inf
        self.ended: tuple[Reason, str] | None = None
        self.lost: Loss | None = None
        self.on_event = on_event
        self._opener = opener
        self._timer = Timer()
        self._pending_opens = PendingOpens(node, limits)
        self._streams = OpenStreams(node, self.session_id, self._pending_opens, on_open)
        self.streams: Mapping[int, TunnelStream] = self._streams.all
        """The streams that their owners have not closed yet."""
        self._mux = make_mux(
            hello, welcome, limits, pool, send_pool, self._streams, self._timer, opener=opener
        )
        self.mux_streams: Collection[StreamState] = self._mux.streams.values()
        """All streams that still hold anything, also those whose owners have closed them."""
        self._carriage = Carriage(self._mux, self._timer)
        profile, now = profile_of(metered=hello.metered), trio.current_time()
        self._session = SessionProtocol(
            self._mux, limits, welcome, profile, pings=not opener, now=now, cap=cap
        )
        self._session.pause()
        self._ended = trio.Event()
        self._given_up = trio.Event()

    # What others may know.

    @property
    def software(self) -> str:
        """The peer's program and its version."""
        return self.hello.software if self._opener else self.welcome.software

    @property
    def services(self) -> tuple[Service, ...]:
        return self.hello.services

    @property
    def attachment(self) -> Attachment | None:
        """What carries it at the moment."""
        return self._carriage.attempt

    @property
    def attached(self) -> bool:
        """Whether a request would be carried now."""
        return self.attachment is not None and self.ended is None

    @property
    def state(self) -> SessionState:
        """What a request would meet now."""
        if self.ended is not None:
            return SessionState.ENDED
        if self.attachment is None:
            return SessionState.GRACE
        late = trio.current_time() >= self._session.late_at()
        return SessionState.DEGRADED if late else SessionState.ATTACHED

    @property
    def is_silent(self) -> bool:
        """Whether something is late and nothing was heard meanwhile."""
        return self.attachment is not None and trio.current_time() >= self._session.quiet_at()

    @property
    def received(self) -> int:
        """What this end tells as ``have``."""
        return self._session.received

    def statistics(self) -> SessionStatistics:
        """Return the session's figures now. The cost grows with the number of streams."""
        return take_statistics(self._session, self._streams, self.lost, is_carried=bool(self.attachment))

    # Living.

    async def run(self) -> None:
        """Keeps the session's time until the link has ended and its carrier is given up.

        Cancelled, it gives the carrier up at once and resets every stream.
        """
        try:
            while self.ended is None or trio.current_time() < self._timer.give_up_at:
                await self._timer.sleep(self._deadline())
                self._tick(trio.current_time())
        except Exception:
            self._finish(Reason.INTERNAL_ERROR, "")
            raise
        finally:
            self._finish(Reason.SESSION_LOST, "the link was given up")
            self._carriage.leave()
            self.on_event = _ignore  # its owner may refer to the link
            self._given_up.set()

    def _deadline(self) -> float:
        if self.ended is not None:
            return self._timer.give_up_at
        if self.lost is not None:
            return min(self._timer.give_up_at, self._pending_opens.next_deadline)
        deadline = min(self._session.deadline(), self._pending_opens.next_deadline, self._late_at())
        return round_up_deadline(deadline, trio.current_time()) if self._opener else deadline

    def _late_at(self) -> float:
        """When somebody is to be told that something is late."""
        return math.inf if self._opener else max(self._session.late_at(), self._timer.late_again_at)

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
            if self._session.tick(now):
                self._mux.wake()
        except ProtocolError as fault:
            if fault.reason is not Reason.PING_TIMEOUT:
                self.end(fault.reason, fault.detail)
                return
            self._lose(fault.reason, fault.detail)
        if now >= self._late_at():
            self._timer.late_again_at = now + _TELL_LATE_SECONDS
            self.on_event(self, SessionEvent.LATE)

    # Carriers.

    def move_to(self, attempt: Attachment, have: int) -> None:
        """``attempt`` carries this session from here on; the peer has everything up to ``have``, or more.

        The carrier before it is abandoned. Only for a link that has not ended.
        """
        now = trio.current_time()
        first = self.attached_at == math.inf
        self._carriage.take(attempt)
        self.lost, self._timer.give_up_at = None, math.inf
        self.peer_address = attempt.peer_address
        self.attached_at = min(self.attached_at, now)
        if first and self._opener:
            # From welcome to use: until the first ping tells it better.
            self._session.liveness.round_trip_seconds = now - attempt.answered_at
        attempt.carry(self)
        try:
            self._session.move(have, now)
        except ProtocolError as fault:
            self._carriage.start()
            self.end(fault.reason, fault.detail)
            return
        if not self._opener and attempt.welcome.used:
            self._carriage.start_with_data(now)
        else:
            self._carriage.start()
            attempt.carrier.wake()
        self._pending_opens.resumed(now)
        self._timer.look_now(now)  # it goes by the session's deadlines again
        if not first:
            self.on_event(self, SessionEvent.RESUMED)

    def carrier_lost(self, detail: str) -> None:
        """The carrier broke. Whatever the call ended with, that is no end on purpose."""
        self._lose(Reason.CARRIER_LOST, detail)

    def _lose(self, reason: Reason, detail: str) -> None:
        now = trio.current_time()
        # The grace counts from when it stopped answering, not from when somebody noticed.
        is_silent = self.is_silent or reason is Reason.PING_TIMEOUT
        since = self._session.liveness.last_received_at if is_silent else now
        self._carriage.leave()
        if self.ended is not None or not self.welcome.grace_ms:
            self._end_at_once(reason, detail)
            return
        self.lost = Loss(since, reason, detail)
        self._timer.give_up_at = since + self.welcome.grace_ms / 1000
        self._session.pause()
        self._pending_opens.lost(now)
        self._timer.look_now(now)  # it goes by the grace from here on
        self.on_event(self, SessionEvent.LOST)

    def ping_now(self) -> None:
        """Asks the carrier of the moment whether it is alive."""
        self._session.ping_now(trio.current_time())
        self._mux.wake()

    async def wait_ended(self) -> tuple[Reason, str]:
        """Waits for the end and returns its reason and detail."""
        await self._ended.wait()
        assert self.ended is not None
        return self.ended

    async def wait_given_up(self) -> None:
        """Waits until :meth:`run` is over: the peer heard of the end, or had its time to."""
        await self._given_up.wait()

    async def wait_no_streams(self) -> None:
        """Waits until every stream was closed by its owner, and the peer has all that it said."""
        while self.ended is None and (self._streams.all or self._mux.streams):
            await self._streams.wait_change()

    # What the carrier calls.

    def packet_received(self, data: bytes) -> None:
        """Takes one packet in. Never raises: a fault of the peer ends the link with its reason."""
        session, now = self._session, trio.current_time()
        try:
            session.receive(decode_packet(data), len(data), now)
            if session.peer_bye is not None and self.ended is None:
                self._finish(session.peer_bye.reason, session.peer_bye.detail)
            if session.bye_acked:
                self._give_up_now()
            elif session.may_send(now):  # a confirmation may have made room, in the flight or in memory
                self._mux.wake()
            elif (deadline := session.deadline()) < self._timer.look_at:
                self._timer.wake_by(deadline)
        except ProtocolError as fault:
            self.end(fault.reason, fault.detail)
        except UseRejectedError as rejected:
            if rejected.reason is Reason.STALE_ATTEMPT:  # a newer one won
                self._lose(rejected.reason, rejected.detail)
            else:
                self._end_at_once(rejected.reason, rejected.detail)
        except Exception:
            _log.exception("a packet from %s could not be handled", self.node)
            self.end(Reason.INTERNAL_ERROR)

    def next_packet(self) -> bytes | None:
        """The bytes of the next packet, or None when there is nothing to say. Never raises."""
        session, timer, now = self._session, self._timer, trio.current_time()
        try:
            if timer.send_at != math.inf:
                if now < timer.send_at and session.may_defer(now):
                    return None  # the carrier can take a packet, but nobody asked for one
                self._carriage.send_deferred()
            packet = session.next_packet(now)
            if packet is None:
                if session.allowance.due < timer.look_at:
                    timer.wake_by(session.allowance.due)
                return None
            if not self._opener and session.late_at() < timer.look_at:
                timer.wake_by(self._late_at())
            if session.grace_is_short:
                timer.wake_by(session.unanswered_until())
            data = encode_packet(*packet)
            if session.allowance.cap is not None:
                session.allowance.cap.take(len(data), now)
            return data
        except Exception:
            _log.exception("no packet could be made for %s", self.node)
            self._end_at_once(Reason.INTERNAL_ERROR, "")  # after a missing packet none would be understood
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
        """Server: opens a stream to ``target`` and returns before the dial. Raises ``Refused``.

        What is sent before ``wait_opened`` returns is early data: the agent writes it once it dialled.
        ``target_tls``: the agent speaks TLS to a target that is an https service.
        ``on_opened`` is called when it did; an agent that gives no answer in time has the stream reset
        with ``OPEN_TIMEOUT``.
        """
        if self.ended is not None:
            raise Refused(Reason.NODE_NOT_ATTACHED, f"node {self.node} is not attached: {self.ended[1]}")
        if self._streams.draining or self._session.peer_draining:
            raise self._streams.why_draining()
        request = Open(0, str(target), user, entrance, 0, verb=verb, target_tls=target_tls)
        stream = self._streams.open(self._mux.open(request, early_data), on_opened)
        self._timer.wake_by(self._pending_opens.add(stream, trio.current_time(), self.lost))
        return stream

    # Ending.

    def drain(self, deadline_seconds: float) -> None:
        """No new streams from here on; running ones may finish. The peer is told."""
        if self.ended is None and not self._streams.draining:
            self._streams.draining = True
            self._session.say_draining(deadline_seconds)
            self._mux.wake()

    def end(self, reason: Reason, detail: str = "") -> None:
        """Ends the session: every stream is reset, the peer is told why. Idempotent, never blocks."""
        if self.ended is not None:
            return
        self._session.say_bye(reason, detail)
        self._finish(reason, detail)
        if self.attachment is None:
            self._give_up_now()  # nobody to tell it to; who comes back is told that it is unknown
        self._mux.wake()

    def _finish(self, reason: Reason, detail: str) -> None:
        if self.ended is not None:
            return
        self.ended = (reason, detail or reason.meaning)
        # The users of its streams are told whose session it was: kubectl shows them nothing else.
        self._mux.fail(reason, f"the session with node {self.node} ended: {detail or reason.meaning}")
        seconds = min(self._session.liveness.response_timeout_seconds, _MOST_FAREWELL_SECONDS)
        self._timer.give_up_at = trio.current_time() + seconds
        self._timer.wake_by(self._timer.give_up_at)
        self._ended.set()
        self._streams.note_change()

    def _end_at_once(self, reason: Reason, detail: str) -> None:
        """End without a carrier, or without one that the peer would hear the end over."""
        self._finish(reason, detail)
        self._give_up_now()

    def _give_up_now(self) -> None:
        self._timer.give_up_at = trio.current_time()
        self._timer.look_now(self._timer.give_up_at)
