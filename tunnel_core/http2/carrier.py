"""Carriers that agents dial, served without gRPC's library: TLS streams that speak HTTP/2.

Theory of operation
1. The listener completes TLS and gives the stream to :meth:`CarrierServer.serve`, whose task reads the stream
   to its end, 2 ms at a time. ``Http2Call`` decides what the bytes mean; the port gets each packet at once.
2. A lone packet is written inside the step that woke the carrier. Packets that follow each other closely are
   written in trio's next pass, so that the data of many streams shares one packet.
3. Until the carrier has a port, at most ``_EARLY_BYTES`` of messages are kept, and the port gets them first.
4. An abandoned carrier ends its call, and its connection is reset a moment later with all that its queues
   hold, because on a dead path TCP would keep the socket for 20 s.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from tunnel_core.carrier.interface import ATTACH_PATH, Carrier, CarrierPort, Peer
from tunnel_core.http2.call import OK, RESOURCE_EXHAUSTED, Http2Call, Http2Error
from tunnel_core.http2.frame_budget import FloodError
from tunnel_core.http2.read_sizes import USUAL_READ, next_read
from tunnel_core.limits import KIB, MIB, Limits
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tls import SocketTlsStream
from tunnel_core.streams.tls_errors import RecordFlood

_TURN_SECONDS = 0.002
"""So long one connection handles what came before it lets others run."""
_BURST = 1 * MIB
"""Bytes that one connection may send before it lets others run."""
_EARLY_BYTES, _EARLY_MESSAGES = 64 * KIB, 1024
"""Bytes and messages that wait until the carrier has its port: a hello."""
_CROWD_SECONDS = 0.0003
"""A packet so soon after another one is probably one of many: a lone echo takes twice as long."""
_CALL_SECONDS = 10.0
"""Time from the end of the handshake to the call."""
_ABORT_SECONDS = 0.25
_STOP_SECONDS = 5.0
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)

_log = logging.getLogger("qanat.carrier")


class ServedCarrier(Carrier):
    """One connection with its call."""

    __slots__ = (
        "_call",
        "_early",
        "_early_bytes",
        "_is_blocked",
        "_is_busy",
        "_is_over",
        "_lost",
        "_on_message",
        "_port",
        "_scope",
        "_sent_at",
        "_server",
        "_started",
        "_stream",
        "is_taken",
        "peer",
    )

    def __init__(
        self,
        server: CarrierServer,
        stream: SocketTlsStream,
        peer: Peer,
        call: Http2Call,
        on_message: Callable[[], None] | None = None,
    ) -> None:
        self.peer = peer
        self.is_taken = False  # the owner of the server has it
        self._server = server
        self._stream = stream
        self._call = call
        self._on_message = on_message  # hears of the first one
        self._port: CarrierPort | None = None
        self._started: trio.Event | None = None  # waited for by the reader
        self._early: deque[bytes] = deque()
        self._early_bytes = 0
        self._sent_at = -math.inf  # the last packet
        self._is_busy = False  # inside a step that writes at its end
        self._is_blocked = False  # the kernel takes no more
        self._is_over = False  # abandoned, or the port knows that it is lost
        self._lost: str | None = None
        self._scope = trio.CancelScope()

    def start(self, port: CarrierPort) -> None:
        if self._is_over:
            return
        self._port = port
        if self._started is not None:
            self._started.set()
        self.wake()

    def hand_over(self, port: CarrierPort) -> None:
        if self._port is not None:
            self._port = port

    def wake(self) -> None:
        if not self._is_busy:
            self._server.step_soon(self)

    def wake_for_data(self) -> None:
        if self._is_busy:
            return
        # Among many, in trio's next pass, with all other wakes of this one: a write at once would give each
        # stream a packet of its own, at twice the CPU.
        if trio.current_time() - self._sent_at < _CROWD_SECONDS:
            self._server.step_soon(self)
        else:
            self.step()

    def abandon(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._port = None
        if self._lost is None:
            self._call.finish(OK)
            self.wake()
            self._end_soon()

    async def run(self) -> None:
        """Read the connection to its end. Raises what tells of a fault."""
        detail = "the server stopped"
        try:
            with self._scope:
                self._scope.deadline = trio.current_time() + _CALL_SECONDS
                self.step()
                detail = await self._read()
        except (FloodError, Http2Error, RecordFlood) as error:
            detail = f"the connection was cut: {error}"
            raise
        except _GONE as error:
            detail = str(error)
        finally:
            if self._is_blocked or self._scope.deadline <= trio.current_time():
                self._stream.abort()  # on a dead path TCP would keep what is queued
            self._lose(detail)

    def stop(self) -> None:
        """End ``run``. The connection is the caller's to close."""
        self._scope.cancel()

    def step(self) -> None:
        """Deliver what waited for the port, and write what there is."""
        if self._is_busy:
            return
        if self._lost is not None:
            self._tell()
            return
        self._is_busy = True
        try:
            self._deliver()
            self._write()
        except _GONE:
            pass  # the reader hears of it as well, and says why
        finally:
            self._is_busy = False

    async def _read(self) -> str:
        size, stream, began = USUAL_READ, self._stream, trio.current_time()
        while True:
            if self._early and self._port is not None:
                self._server.step_soon(self)  # each pass delivers some
                await trio.lowlevel.checkpoint()
                continue
            if self._call.ended:
                return self._call.ended
            if self._early_bytes > _EARLY_BYTES or len(self._early) > _EARLY_MESSAGES:
                await self._wait_started()
            asked = trio.current_time()
            data = stream.receive_nowait(size)
            if data is None:
                await stream.wait_readable()
                began = trio.current_time()
                continue
            if not data:
                return "the other end closed the connection"
            self._take(data, asked)
            now = trio.current_time()
            size = next_read(size, len(data), now - asked)
            if now > began + _TURN_SECONDS:
                await trio.lowlevel.checkpoint()
                began = trio.current_time()

    async def _wait_started(self) -> None:
        if not self._is_over:
            self._started = trio.Event()
            await self._started.wait()

    def _take(self, data: bytes, now: float) -> None:
        call = self._call
        self._is_busy = True
        try:
            messages = call.receive(data, now)
            if call.has_call and not self.is_taken:
                self.is_taken = True
                self._scope.deadline = math.inf
                self._server.take(self, call)
            if messages and call.has_call and self._on_message is not None:
                self._on_message()
                self._on_message = None
            for message in messages:
                self._early.append(message)
                self._early_bytes += len(message)
            call.holds_window = self._port is None
            self._deliver()
            if call.has_finished and not self._is_over:
                self._is_over = True
                self._end_soon()
            self._write()
        finally:
            self._is_busy = False

    def _deliver(self) -> None:
        """Deliver what waits; after a turn the rest is left to trio's next pass."""
        early = self._early
        if not early or (self._port is None and not self._is_over):
            return
        self._call.holds_window = False
        ends = trio.current_time() + _TURN_SECONDS if len(early) > 1 else math.inf
        while early and (port := self._port) is not None:
            message = early.popleft()
            self._early_bytes -= len(message)
            port.packet_received(message)
            if early and trio.current_time() > ends:
                self._server.step_soon(self)
                return
        early.clear()
        self._early_bytes = 0

    def _write(self) -> None:
        call, written = self._call, 0
        while not self._is_blocked:
            if self._port is not None and call.can_send and written < _BURST:
                packet = self._port.next_packet()
                if packet is not None:
                    self._sent_at = trio.current_time()
                    call.send(packet)
                    written += len(packet)
            output = call.take_output()
            if not output:
                break
            if not self._stream.send_nowait(output):
                self._is_blocked = True
                self._server.start_soon(self._flush)
        if written >= _BURST:
            self._server.step_soon(self)

    async def _flush(self) -> None:
        with contextlib.suppress(*_GONE):
            await self._stream.flush()
            self._is_blocked = False
            self.step()

    def _end_soon(self) -> None:
        """End ``run`` once what was sent last had time to leave."""
        self._scope.deadline = trio.current_time() + _ABORT_SECONDS

    def _lose(self, detail: str) -> None:
        """Tell the port, or a later port, that the call is over."""
        self._lost = detail
        self._tell()

    def _tell(self) -> None:
        port, self._port = self._port, None
        if port is not None and not self._is_over:
            self._is_over = True
            port.carrier_lost(self._lost or "")


class CarrierServer:
    """Serves connections whose TLS is done. Made by :func:`serve_carriers`."""

    def __init__(
        self, on_carrier: Callable[[Carrier], None], limits: Limits, max_carriers: int, nursery: trio.Nursery
    ) -> None:
        self._on_carrier = on_carrier
        self._max_message_bytes = limits.max_message_bytes
        self._max_carriers = max_carriers
        self._nursery = nursery
        self._carriers: set[ServedCarrier] = set()
        self._taken = 0
        self._woken: dict[ServedCarrier, None] = {}
        self._stepper: trio.lowlevel.Task | None = None  # parked until a carrier is woken
        self._is_stopped = False
        self._all_gone = trio.Event()

    async def serve(
        self, stream: SocketTlsStream, peer: Peer, on_message: Callable[[], None] | None = None
    ) -> None:
        """Serve one connection to its end; TLS has proven ``peer``. The caller closes ``stream``.

        ``on_message`` is called when the first message is complete; it must not block or raise.
        Raises ``Refused`` if the client flooded or broke the protocol. Cancelled, it loses the carrier.
        """
        if self._is_stopped:
            return
        call = Http2Call(ATTACH_PATH.encode(), self._max_message_bytes, trio.current_time())
        carrier = ServedCarrier(self, stream, peer, call, on_message)
        self._carriers.add(carrier)
        try:
            await carrier.run()
        except (FloodError, RecordFlood) as flood:
            raise Refused(Reason.FRAME_FLOOD, f"{flood}; the connection was cut") from None
        except Http2Error as error:
            raise Refused(Reason.PROTOCOL_ERROR, f"{error}; the connection was cut") from None
        finally:
            self._carriers.discard(carrier)
            self._taken -= carrier.is_taken
            if self._is_stopped and not self._carriers:
                self._all_gone.set()

    async def stop(self) -> None:
        """Break the carriers that are left, and wait for their ends."""
        self._is_stopped = True
        for carrier in self._carriers:
            carrier.stop()
        if self._carriers:
            await self._all_gone.wait()

    def take(self, carrier: ServedCarrier, call: Http2Call) -> None:
        """Pass a carrier with a call on to the owner, or end the call."""
        self._taken += 1
        if self._taken > self._max_carriers:
            call.finish(RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")
        else:
            self._on_carrier(carrier)

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Start a task that raises nothing."""
        self._nursery.start_soon(task)

    def step_soon(self, carrier: ServedCarrier) -> None:
        """Have the carrier step in trio's next pass: once, however often it is asked for."""
        self._woken[carrier] = None
        stepper, self._stepper = self._stepper, None
        if stepper is not None:
            trio.lowlevel.reschedule(stepper)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Step the carriers that were woken, until cancelled."""
        task_status.started()
        while True:
            if not self._woken:
                self._stepper = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._unpark)
            await trio.lowlevel.checkpoint()  # after all that are ready now
            woken, self._woken = self._woken, {}
            for carrier in woken:
                _step(carrier)

    def _unpark(self, _: object) -> trio.lowlevel.Abort:
        self._stepper = None
        return trio.lowlevel.Abort.SUCCEEDED


def _step(carrier: ServedCarrier) -> None:
    """A fault of one carrier's port must not stop the others."""
    try:
        carrier.step()
    except Exception:
        _log.exception("a carrier of %s failed", carrier.peer.address)
        carrier.stop()


@asynccontextmanager
async def serve_carriers(
    *,
    on_carrier: Callable[[Carrier], None],
    limits: Limits,
    nursery: trio.Nursery,
    max_carriers: int = 10_000,
) -> AsyncIterator[CarrierServer]:
    """Serve until the end of the body, and then break the carriers that are left.

    ``on_carrier`` must not block or raise, and has to start or to abandon each carrier sooner or later.
    """
    server = CarrierServer(on_carrier, limits, max_carriers, nursery)
    await nursery.start(server.run)
    try:
        yield server
    finally:
        with trio.move_on_after(_STOP_SECONDS, shield=True):
            await server.stop()
