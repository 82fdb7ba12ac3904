"""One session on one carrier: joins the state machines (session, mux) to time, carrier and streams.

The carrier calls ``packet_received``, ``next_packet`` and ``carrier_lost`` from wherever it runs; none
of them blocks. ``run`` keeps the time. A link ends once, with one reason: its streams are reset with
it, the peer is told by ``bye``, and the carrier is given up when the peer confirmed that, or soon.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping

import trio

from tunnel_core.carrier import Carrier
from tunnel_core.codec import encode_packet
from tunnel_core.credit import CreditPool
from tunnel_core.frames import Frame, Hello, Malformed, Open, Packet, Service, Welcome
from tunnel_core.halves import PeerFault
from tunnel_core.limits import Limits
from tunnel_core.mux import Mux, MuxStream
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session import AgentSteps, AttachRejected, ServerSteps, Session
from tunnel_core.stream import Stream

_log = logging.getLogger(__name__)

_FAREWELL_SECONDS = 1.0
"""How long an ended link waits for its bye to be confirmed, or for the peer to hear our confirmation."""


class Link:
    """One session of one node. Made by the server for each carrier, and by the agent for each attempt.

    ``on_attached`` is called once the attach is complete, ``on_open`` (agent) for each stream that the
    server opens; neither may block or raise. Whoever makes a link runs :meth:`run` in a nursery.
    """

    def __init__(
        self,
        carrier: Carrier,
        steps: ServerSteps | AgentSteps,
        *,
        node: str,
        limits: Limits,
        pool: CreditPool,
        on_attached: Callable[[Link], None] | None = None,
        on_open: Callable[[Stream], None] | None = None,
    ) -> None:
        self.node = node
        self.peer_address = carrier.peer.address
        self.attached_at = math.inf
        self.ended: tuple[Reason, str] | None = None
        self.rejection: AttachRejected | None = None
        self.draining = False
        self._carrier = carrier
        self._steps = steps
        self._limits = limits
        self._on_attached = on_attached
        self._on_open = on_open
        self._opener = isinstance(steps, ServerSteps)
        self._session: Session | None = None
        self._mux = Mux(
            limits,
            pool,
            opener=self._opener,
            wake=carrier.wake,
            wake_for_data=carrier.wake_for_data,
            wake_later=self._wake_later,
            on_open=self._stream_opened,
            on_empty=self._look_again,
        )
        self._streams: dict[int, Stream] = {}
        self._answered_at = math.inf
        self._wake_at = math.inf
        self._unanswered: dict[Stream, float] = {}  # until when each open has time; the oldest first
        self._serial = 0
        self._closed_in = self._closed_out = 0  # bytes of streams that are closed
        self._steps_out: list[Frame] = [] if isinstance(steps, ServerSteps) else [steps.hello]
        self._attached = trio.Event()
        self._ended = trio.Event()
        self._given_up = trio.Event()
        self._no_streams: trio.Event | None = None  # made by whoever waits for it
        self._give_up_at = trio.current_time() + limits.attach_timeout_seconds
        self._timer = trio.CancelScope()

    # What others may know.

    @property
    def hello(self) -> Hello:
        """What the agent said of itself. Only after the attach."""
        assert self._steps.hello is not None
        return self._steps.hello

    @property
    def welcome(self) -> Welcome:
        """What the server answered. Only after the attach."""
        assert self._steps.welcome is not None
        return self._steps.welcome

    @property
    def session_id(self) -> str:
        """Eight hex digits that name the session in logs on both ends."""
        return self.welcome.session.hex()[:8]

    @property
    def attached(self) -> bool:
        """Whether a request would be carried now."""
        return self._session is not None and self.ended is None

    @property
    def was_attached(self) -> bool:
        """Whether the attach was ever complete."""
        return self._session is not None

    @property
    def software(self) -> str:
        return self.hello.software if self._opener else self.welcome.software

    @property
    def services(self) -> tuple[Service, ...]:
        return self.hello.services

    @property
    def round_trip_seconds(self) -> float | None:
        return self._session.round_trip_seconds if self._session else None

    @property
    def streams(self) -> Mapping[int, Stream]:
        """The streams that their owners have not closed yet."""
        return self._streams

    @property
    def credit_granted(self) -> int:
        """Bytes that the peer may send, or has sent and nobody read yet, over all streams."""
        return sum(stream.recv.outstanding for stream in self._mux.streams.values())

    @property
    def mux_streams(self) -> Iterable[MuxStream]:
        """All streams that still hold anything, also those whose owners have closed them."""
        return self._mux.streams.values()

    @property
    def bytes_in(self) -> int:
        return self._closed_in + sum(stream.bytes_in for stream in self._streams.values())

    @property
    def bytes_out(self) -> int:
        return self._closed_out + sum(stream.bytes_out for stream in self._streams.values())

    # Living.

    async def run(self) -> None:
        """Keeps the session's time until the link has ended and its carrier is given up.

        Cancelled, it gives the carrier up at once and resets every stream.
        """
        try:
            self._carrier.start(self)
            while self.ended is None or trio.current_time() < self._give_up_at:
                with trio.CancelScope(deadline=self._deadline()) as self._timer:
                    await trio.sleep_forever()
                self._tick(trio.current_time())
        except Exception:
            self._finish(Reason.INTERNAL_ERROR, "")
            raise
        finally:
            self._finish(Reason.SESSION_LOST, "the link was given up")
            self._carrier.abandon()
            self._given_up.set()

    def _deadline(self) -> float:
        if self.ended is not None or self._session is None:
            return self._give_up_at
        first_unanswered = next(iter(self._unanswered.values()), math.inf)
        return min(self._session.deadline(), self._wake_at, first_unanswered)

    def _tick(self, now: float) -> None:
        if self.ended is not None:
            return
        if self._session is None:
            if now >= self._give_up_at:
                self._finish(Reason.ATTACH_TIMEOUT, "the attach was not completed in time")
            return
        if self._unanswered:
            self._reset_unanswered(now)
        if now >= self._wake_at:
            self._wake_at = math.inf
            self._carrier.wake()
        try:
            if self._session.tick(now):
                self._carrier.wake()
        except PeerFault as fault:
            self.end(fault.reason, fault.detail)

    async def wait_attached(self) -> None:
        """Agent: waits until the server welcomed us. Raises ``Refused`` if it never will."""
        await self._attached.wait()
        if self.rejection is not None:
            raise self.rejection
        if self._session is None and self.ended is not None and self._steps.welcome is None:
            raise Refused(*self.ended)

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
        while self.ended is None and (self._streams or self._mux.streams):
            if self._no_streams is None or self._no_streams.is_set():
                self._no_streams = trio.Event()
            await self._no_streams.wait()

    def _look_again(self) -> None:
        if self._no_streams is not None:
            self._no_streams.set()

    # What the carrier calls.

    def packet_received(self, packet: Packet | Malformed, size: int) -> None:
        """Takes one packet in. Never raises: a fault of the peer ends the link with its reason."""
        try:
            if isinstance(packet, Malformed):
                raise PeerFault(Reason.MALFORMED_PACKET, packet.why)
            self._receive(packet, size, trio.current_time())
        except PeerFault as fault:
            self.end(fault.reason, fault.detail)
        except Exception:
            _log.exception("a packet from %s could not be handled", self.node)
            self.end(Reason.INTERNAL_ERROR)

    def _receive(self, packet: Packet, size: int, now: float) -> None:
        session = self._session
        if session is None:
            if self.ended is None:
                self._attach_step(packet)
            return
        session.receive(packet, size, now)
        if session.peer_bye is not None and self.ended is None:
            self._finish(session.peer_bye.reason, session.peer_bye.detail)
        if session.bye_confirmed:
            self._give_up_now()
            return
        deadline = session.deadline()
        if deadline <= now or session.answers_pending or self._mux.has_work:
            self._carrier.wake()  # has_work: a confirmation may have freed memory that data waited for
        elif deadline < self._timer.deadline:
            self._timer.deadline = deadline

    def _attach_step(self, packet: Packet) -> None:
        for frame in packet.frames:
            try:
                answer = self._steps.receive(frame)
            except AttachRejected as rejection:
                self.rejection = rejection
                self._finish(rejection.reason, rejection.detail)
                return
            if answer is not None:
                self._answered_at = trio.current_time()
                self._steps_out.append(answer)
        if isinstance(self._steps, ServerSteps) and self._steps.rejected is not None:
            self._finish(self._steps.rejected.reason, self._steps.rejected.detail)
        elif self._steps.attached:
            self._start_session()
        elif isinstance(self._steps, AgentSteps):
            self._attached.set()  # a probe: the welcome was all it wanted
        self._carrier.wake()

    def _start_session(self) -> None:
        now = trio.current_time()
        mux, hello, welcome = self._mux, self.hello, self.welcome
        mux.peer_initial_credit = hello.initial_credit if self._opener else welcome.initial_credit
        mux.peer_early_data = min(welcome.early_data_limit, mux.peer_initial_credit)
        mux.peer_max_streams = welcome.max_streams
        self._session = Session(mux, self._limits, welcome, pings=not self._opener, now=now)
        self.attached_at = now
        if self._opener:  # from welcome to use: until the first ping tells it better
            self._session.round_trip_seconds = now - self._answered_at
        self._timer.deadline = now  # the timer goes by the session's deadlines from here on
        self._attached.set()
        if self._on_attached is not None:
            self._on_attached(self)

    def next_packet(self) -> bytes | None:
        """The bytes of the next packet, or None when there is nothing to say. Never raises."""
        try:
            return self._next_packet()
        except Exception:
            _log.exception("no packet could be made for %s", self.node)
            self._finish(Reason.INTERNAL_ERROR, "")
            self._give_up_now()  # a numbered packet is missing: nothing more would be understood
            return None

    def _next_packet(self) -> bytes | None:
        if self._steps_out:
            frames, self._steps_out = self._steps_out, []
            return encode_packet(0, 0, frames)
        if self._session is None:
            return None
        if self._wake_at != math.inf:
            self._wake_at = math.inf  # what waited for company goes now
            self._timer.deadline = self._deadline()
        packet = self._session.next_packet(trio.current_time())
        return None if packet is None else encode_packet(*packet)

    def carrier_lost(self, detail: str) -> None:
        """The carrier broke. Whatever the call ended with, that is no end on purpose."""
        self._finish(Reason.CARRIER_LOST, detail)
        self._give_up_now()

    def _wake_later(self, seconds: float) -> None:
        """Something may wait for company; alone it goes out after ``seconds``."""
        wake_at = trio.current_time() + seconds
        if wake_at < self._wake_at:
            self._wake_at = wake_at
            self._timer.deadline = min(self._timer.deadline, wake_at)

    # Streams.

    def open(
        self,
        target: Target,
        *,
        user: str,
        entrance: str,
        early_data: bytes = b"",
        verb: str = "",
        on_opened: Callable[[], None] | None = None,
    ) -> Stream:
        """Server: opens a stream to ``target`` and returns before the dial. Raises ``Refused``.

        What is sent before ``wait_opened`` returns is early data: the agent writes it once it dialled.
        ``on_opened`` is called when it did; an agent that gives no answer in time has the stream reset
        with ``OPEN_TIMEOUT``.
        """
        if not self.attached:
            reason, detail = self.ended or (Reason.NODE_NOT_ATTACHED, "")
            raise Refused(
                Reason.NODE_NOT_ATTACHED, f"node {self.node} is not attached: {detail or reason.meaning}"
            )
        assert self._session is not None
        if self.draining or self._session.peer_draining:
            reason = Reason.SERVER_STOPPING if self.draining else Reason.AGENT_STOPPING
            raise Refused(reason, f"node {self.node} takes no new streams: {reason.meaning}")
        mux_stream = self._mux.open(Open(0, str(target), user, entrance, 0, verb=verb), early_data)
        stream = self._adopt(mux_stream)
        self._await_answer(stream, mux_stream, on_opened)
        return stream

    def _await_answer(
        self, stream: Stream, mux_stream: MuxStream, on_opened: Callable[[], None] | None
    ) -> None:
        deadline = trio.current_time() + self._limits.open_timeout_seconds
        self._unanswered[stream] = deadline
        if deadline < self._timer.deadline:
            self._timer.deadline = deadline

        def opened() -> None:
            self._unanswered.pop(stream, None)
            if on_opened is not None:
                on_opened()

        mux_stream.on_opened = opened

    def _reset_unanswered(self, now: float) -> None:
        seconds = self._limits.open_timeout_seconds
        for stream in [stream for stream, deadline in self._unanswered.items() if deadline <= now]:
            detail = f"node {self.node} did not say within {seconds:g} s whether it reached {stream.target}"
            stream.reset(Reason.OPEN_TIMEOUT, detail)

    def _stream_opened(self, mux_stream: MuxStream) -> None:
        if self._on_open is None or self.draining:
            mux_stream.refuse(Refused(Reason.AGENT_STOPPING, f"node {self.node} takes no new streams"))
        else:
            self._on_open(self._adopt(mux_stream))

    def _adopt(self, mux_stream: MuxStream) -> Stream:
        self._serial += 1
        serial = self._serial

        def forget(stream: Stream) -> None:
            del self._streams[serial]
            self._unanswered.pop(stream, None)
            self._look_again()
            self._closed_in += stream.bytes_in
            self._closed_out += stream.bytes_out

        stream = Stream(mux_stream, self.session_id, forget)
        self._streams[serial] = stream
        return stream

    # Ending.

    def drain(self, deadline_seconds: float) -> None:
        """No new streams from here on; running ones may finish. The peer is told."""
        if self.attached and not self.draining:
            assert self._session is not None
            self.draining = True
            self._session.say_draining(deadline_seconds)
            self._carrier.wake()

    def end(self, reason: Reason, detail: str = "") -> None:
        """Ends the session: every stream is reset, the peer is told why. Idempotent, never blocks."""
        if self.ended is not None:
            return
        if self._session is not None:
            self._session.say_bye(reason, detail)
        self._finish(reason, detail)
        if self._session is None:
            self._give_up_now()
        self._carrier.wake()

    def _finish(self, reason: Reason, detail: str) -> None:
        if self.ended is not None:
            return
        self.ended = (reason, detail or reason.meaning)
        # The users of its streams are told whose session it was: kubectl shows them nothing else.
        self._mux.fail(reason, f"the session with node {self.node} ended: {detail or reason.meaning}")
        self._give_up_at = trio.current_time() + _FAREWELL_SECONDS
        self._timer.deadline = min(self._timer.deadline, self._give_up_at)
        self._attached.set()
        self._ended.set()
        self._look_again()

    def _give_up_now(self) -> None:
        self._give_up_at = self._timer.deadline = trio.current_time()
