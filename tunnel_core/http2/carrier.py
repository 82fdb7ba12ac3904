"""Serve the carriers that agents dial, without gRPC's library: HTTP/2 over TLS streams.

Theory of operation
1. The listener completes TLS and passes the stream to :meth:`CarrierServer.serve`. Its task reads the stream
   to its end, 2 ms at a time. ``Http2Call`` interprets the bytes; the port gets each packet at once.
2. A lone packet is written inside the step that woke the carrier. Packets that follow closely are written in
   trio's next pass, so that the data of many streams shares one packet.
3. A carrier without a port keeps at most ``_EARLY_BYTES`` of messages, and the port gets them first.
4. An abandoned carrier ends its call. A moment later it resets the connection and discards its queues,
   because on a dead path TCP would keep the socket for 20 s.
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
from tunnel_core.http2.call import OK, RESOURCE_EXHAUSTED, Http2Call
from tunnel_core.http2.frame_budget import FloodError
from tunnel_core.http2.messages import Http2Error
from tunnel_core.http2.read_sizes import USUAL_READ, next_read
from tunnel_core.http2.receiving import receive_once
from tunnel_core.limits import KIB, MIB, Limits
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tls import SocketTlsStream
from tunnel_core.streams.tls_errors import RecordFlood

_TURN_SECONDS = 0.002
"""Time for which one connection handles received bytes before a checkpoint."""
_BURST = 1 * MIB
"""Bytes that one connection may send before a checkpoint."""
_LONE_BYTES = 4 * KIB
"""After a smaller read the carrier waits for more, because another read would usually find nothing."""
_EARLY_BYTES, _EARLY_MESSAGES = 64 * KIB, 1024
"""Bytes and messages that wait until the carrier has its port: a hello."""
_BATCH_SECONDS = 0.0003
"""A packet this soon after another is probably one of many, because a lone echo takes twice as long."""
_CALL_SECONDS = 10.0
"""Time from the end of the handshake to the call."""
_ABORT_SECONDS = 0.25
"""Time from the end of a call to the end of its connection, so that the last bytes can leave."""
_STOP_SECONDS = 5.0
_STREAM_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError)

_log = logging.getLogger("qanat.carrier")


class ServedCarrier(Carrier):
    """One connection and its call. ``on_message`` is called at the first message."""

    __slots__ = (
        "_call",
        "_early",
        "_early_bytes",
        "_is_blocked",
        "_is_busy",
        "_is_ended",
        "_is_woken",
        "_loss_detail",
        "_on_message",
        "_port",
        "_scope",
        "_sent_at",
        "_server",
        "_started",
        "_stream",
        "has_owner",
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
        self.has_owner = False  # the server's owner got this carrier
        self._server = server
        self._stream = stream
        self._call = call
        self._on_message = on_message  # called once
        self._port: CarrierPort | None = None
        self._started: trio.Event | None = None  # the reader waits for it
        self._early: deque[bytes] = deque()
        self._early_bytes = 0
        self._sent_at = -math.inf  # when the last packet was sent
        self._is_busy = False  # within a step, which writes at its end
        self._is_woken = True  # the port may have a packet
        self._is_blocked = False  # the kernel accepts no more
        self._is_ended = False  # abandoned, or reported to the port as lost
        self._loss_detail: str | None = None
        self._scope = trio.CancelScope()

    def start(self, port: CarrierPort) -> None:
        if self._is_ended:
            return
        self._port = port
        if self._started is not None:
            self._started.set()
        self.wake()

    def hand_over(self, port: CarrierPort) -> None:
        if self._port is not None:
            self._port, self._is_woken = port, True

    def wake(self) -> None:
        self._is_woken = True
        if not self._is_busy:
            self._server.step_soon(self)

    def wake_for_data(self) -> None:
        self._is_woken = True
        if self._is_busy:
            return
        # If several streams send, one step in trio's next pass serves all wakes of this pass. A write for
        # each wake would give each stream its own packet, at twice the CPU.
        if trio.current_time() - self._sent_at < _BATCH_SECONDS:
            self._server.step_soon(self)
        else:
            self.step()

    def abandon(self) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        self._port = None
        if self._loss_detail is None:
            self._call.finish(OK)
            self.wake()
            self._scope.deadline = trio.current_time() + _ABORT_SECONDS

    async def run(self) -> None:
        """Read the connection to its end. Raises ``FloodError``, ``Http2Error`` or ``RecordFlood``."""
        detail = "the server stopped"
        try:
            with self._scope:
                self._scope.deadline = trio.current_time() + _CALL_SECONDS
                self.step()
                detail = await self._read()
        except (FloodError, Http2Error, RecordFlood) as error:
            detail = f"the server closed the connection: {error}"
            raise
        except _STREAM_ERRORS as error:
            detail = str(error)
        finally:
            if self._is_blocked or self._scope.deadline <= trio.current_time():
                self._stream.abort()  # on a dead path TCP would keep the queue
            self._loss_detail = detail
            self._report_loss()

    def stop(self) -> None:
        """End ``run``. The caller of ``serve`` closes the connection."""
        self._scope.cancel()

    def step(self) -> None:
        """Deliver messages that waited for the port, and write packets."""
        if self._is_busy:
            return
        if self._loss_detail is not None:
            self._report_loss()
            return
        self._is_busy = True
        try:
            if self._early:
                self._deliver()
            self._write()
        except _STREAM_ERRORS:
            pass  # the reader gets the error too, and reports it
        finally:
            self._is_busy = False

    async def _read(self) -> str:
        stream, size, is_drained, turn_started = self._stream, USUAL_READ, False, trio.current_time()
        while True:
            if self._early and self._port is not None:
                self._server.step_soon(self)  # each pass delivers some
                await trio.lowlevel.checkpoint()
                continue
            if self._call.ended:
                return self._call.ended
            is_full = self._early_bytes > _EARLY_BYTES or len(self._early) > _EARLY_MESSAGES
            if is_full and not self._is_ended:
                self._started = trio.Event()
                await self._started.wait()
            read_at = trio.current_time()
            length, messages = (None, []) if is_drained else receive_once(stream, self._call, size, read_at)
            if length is None:
                is_drained = False
                await stream.wait_readable()
                turn_started = trio.current_time()
                continue
            if not length:
                return "the agent closed the connection"
            self._handle(messages)
            is_drained = length < _LONE_BYTES
            now = trio.current_time()
            size = next_read(size, length, now - read_at)
            if now > turn_started + _TURN_SECONDS:
                await trio.lowlevel.checkpoint()
                turn_started = trio.current_time()

    def _handle(self, messages: list[bytes]) -> None:
        call = self._call
        self._is_busy = True
        try:
            if call.has_call and not self.has_owner:
                self.has_owner = True
                self._scope.deadline = math.inf
                self._server.hand_to_owner(self, call)
            if messages and call.has_call and self._on_message is not None:
                self._on_message()
                self._on_message = None
            for message in messages:
                self._early.append(message)
                self._early_bytes += len(message)
            call.holds_window = self._port is None
            if self._early:
                self._deliver()
            if call.has_finished and not self._is_ended:
                self._is_ended = True
                self._scope.deadline = trio.current_time() + _ABORT_SECONDS
            self._write()
        finally:
            self._is_busy = False

    def _deliver(self) -> None:
        """Deliver waiting messages for one turn, and leave the rest to trio's next pass."""
        early = self._early
        if not early or (self._port is None and not self._is_ended):
            return
        self._call.holds_window = False
        deadline = trio.current_time() + _TURN_SECONDS if len(early) > 1 else math.inf
        while early and (port := self._port) is not None:
            message = early.popleft()
            self._early_bytes -= len(message)
            port.packet_received(message)
            if early and trio.current_time() > deadline:
                self._server.step_soon(self)
                return
        early.clear()
        self._early_bytes = 0

    def _write(self) -> None:
        call, written = self._call, 0
        while not self._is_blocked:
            if self._is_woken and self._port is not None and call.can_send and written < _BURST:
                self._is_woken = False
                packet = self._port.next_packet()
                if packet is not None:
                    self._is_woken, self._sent_at = True, trio.current_time()
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
        with contextlib.suppress(*_STREAM_ERRORS):
            await self._stream.flush()
            self._is_blocked = False
            self.step()

    def _report_loss(self) -> None:
        """Report the loss to the port. ``step`` calls this again for a later port."""
        port, self._port = self._port, None
        if port is not None and not self._is_ended:
            self._is_ended = True
            port.carrier_lost(self._loss_detail or "")


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
        self._owned = 0
        self._woken: dict[ServedCarrier, None] = {}
        self._stepper: trio.lowlevel.Task | None = None  # parked until a carrier is woken
        self._is_stopped = False
        self._all_gone = trio.Event()

    async def serve(
        self, stream: SocketTlsStream, peer: Peer, on_message: Callable[[], None] | None = None
    ) -> None:
        """Serve one connection to its end. TLS has verified ``peer``. The caller closes ``stream``.

        ``on_message`` is called when the first message is complete; it must not block or raise. Raises
        ``Refused`` if the client flooded or violated the protocol. Cancellation loses the carrier.
        """
        if self._is_stopped:
            return
        call = Http2Call(ATTACH_PATH.encode(), self._max_message_bytes, trio.current_time())
        carrier = ServedCarrier(self, stream, peer, call, on_message)
        self._carriers.add(carrier)
        try:
            await carrier.run()
        except (FloodError, RecordFlood) as flood:
            raise Refused(Reason.FRAME_FLOOD, f"{flood}; the server closed the connection") from None
        except Http2Error as error:
            raise Refused(Reason.PROTOCOL_ERROR, f"{error}; the server closed the connection") from None
        finally:
            self._carriers.discard(carrier)
            self._owned -= carrier.has_owner
            if self._is_stopped and not self._carriers:
                self._all_gone.set()

    async def stop(self) -> None:
        """End the remaining carriers, and wait for them."""
        self._is_stopped = True
        for carrier in self._carriers:
            carrier.stop()
        if self._carriers:
            await self._all_gone.wait()

    def hand_to_owner(self, carrier: ServedCarrier, call: Http2Call) -> None:
        """Pass a carrier with a call to the owner, or end the call at the limit."""
        self._owned += 1
        if self._owned > self._max_carriers:
            call.finish(RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!")
        else:
            self._on_carrier(carrier)

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        """Start a task that raises nothing."""
        self._nursery.start_soon(task)

    def step_soon(self, carrier: ServedCarrier) -> None:
        """Let the carrier step once in trio's next pass, however often this is called."""
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
                await trio.lowlevel.wait_task_rescheduled(self._abort_park)
            await trio.lowlevel.checkpoint()  # after all tasks that are ready now
            woken, self._woken = self._woken, {}
            for carrier in woken:
                _step(carrier)

    def _abort_park(self, _: object) -> trio.lowlevel.Abort:
        self._stepper = None
        return trio.lowlevel.Abort.SUCCEEDED


def _step(carrier: ServedCarrier) -> None:
    """Step one carrier, so that a failure of its port does not stop the others."""
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
    """Serve until the end of the body, and then end the remaining carriers.

    ``on_carrier`` must not block or raise, and must start or abandon each carrier in the end.
    While ``max_carriers`` calls are open, a further call ends with ``RESOURCE_EXHAUSTED``.
    """
    server = CarrierServer(on_carrier, limits, max_carriers, nursery)
    await nursery.start(server.run)
    try:
        yield server
    finally:
        with trio.move_on_after(_STOP_SECONDS, shield=True):
            await server.stop()
