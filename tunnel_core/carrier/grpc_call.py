"""The agent's carrier: one gRPC call. The server serves it without gRPC's library (``http2/carrier.py``).

Theory of operation
1. One call, ``Attach``, moves packets as raw bytes, and the port calls the codec. gRPC would swallow the
   exception of a serializer, and would send the error text of a deserializer to the peer.
2. Two asyncio tasks own a call. The reader lives as long as the call and reports why it ended. The writer
   sends the port's packets and then parks until :meth:`Carrier.wake`. No read or write has a time-out,
   because cancelling either cancels the call. A running write is not cancelled at the end either, because
   gRPC then fails to send the call's status and logs a traceback.
3. The reader never waits, because credit bounds the bytes it stores. So the session needs no flow control of
   HTTP/2 below its own. Hence the large ``lookahead_bytes`` and no BDP probes, whose pings more than double
   the traffic of an idle carrier.
4. Every dial uses a new channel with its own connection, because an agent that suspects its connection must
   not get the same one again. Only the owner task refers to channel and call, and no kept traceback has a
   frame of it. As long as any reference to a call exists, gRPC keeps the socket and its queue, ``close()`` or
   not.
5. ``keepalive_timeout_ms`` becomes TCP_USER_TIMEOUT, so that the kernel drops a connection that stays
   unacknowledged for that time. Each dial has its own value, which marks its socket. Keepalive pings are put
   off for ever, because the session checks liveness end to end.
6. The owner task resets an abandoned connection (``grpc_sockets.py``). gRPC would keep it until its queue is
   empty, which never happens on a dead path.
7. gRPC misses a reset that arrives together with data: it reads the data, the kernel counts 0 bytes left
   (TCP_INQ), and no further event comes. The next write finds the reset: a ping at the latest.

Other modules decide about attaching, reconnecting and pings. The carrier draws no conclusion from a call's
status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from tunnel_core.carrier.asyncio_bridge import Bridge
from tunnel_core.carrier.grpc_runtime import aio
from tunnel_core.carrier.grpc_sockets import has_lost_address, throttle
from tunnel_core.carrier.interface import Carrier, CarrierPort, Peer

_Read: TypeAlias = Callable[[], Awaitable[Any]]
_Write: TypeAlias = Callable[[bytes], Awaitable[None]]

# After a failed write the reader usually gets the cause; it has this many seconds until the call is
# cancelled.
READER_SECONDS = 0.5


class CallCarrier(Carrier):
    """One dialled call: its reader and writer tasks, and their end. ``socket_tag`` marks its socket."""

    __slots__ = (
        "_bridge",
        "_early_loss",
        "_ended",
        "_parked",
        "_port",
        "_single_wake",
        "_socket_tag",
        "_stopping",
        "_throttled",
        "_wakes",
        "cancel_owner",
        "peer",
    )

    def __init__(self, bridge: Bridge, peer: Peer, socket_tag: int) -> None:
        self.peer = peer
        self._socket_tag = socket_tag  # the TCP_USER_TIMEOUT of its socket, in ms
        self.cancel_owner: Callable[[], object]
        self._bridge = bridge
        self._port: CarrierPort | None = None
        self._parked: asyncio.Future[None] | None = None
        self._wakes = 0  # since the last packet
        self._single_wake = False  # whether one wake preceded the last packet
        self._throttled = False
        self._stopping = False  # the writer stops after the running write
        self._ended = False  # abandoned, or reported to the port as lost
        self._early_loss: str | None = None  # the cause of a loss before the start

    def start(self, port: CarrierPort) -> None:
        if self._ended:
            return
        self._port = port
        if self._early_loss is not None:
            self._bridge.call_soon(self.report_loss, self._early_loss)
        self.wake()

    def hand_over(self, port: CarrierPort) -> None:
        if self._port is not None:
            self._port = port

    def wake(self) -> None:
        if self._unpark():
            self._bridge.turn_soon()

    def wake_for_data(self) -> None:
        if self._unpark():
            # If several streams send, one turn in trio's next pass serves all wakes of this pass. A turn for
            # each wake would send a packet for each, at twice the CPU. A single stream need not wait.
            if self._single_wake:
                self._bridge.turn()
            else:
                self._bridge.turn_soon()

    def _unpark(self) -> bool:
        """Wake the writer. Return False if it is awake or busy."""
        self._wakes += 1
        parked = self._parked
        if parked is None:
            return False
        self._parked = None
        if parked.done():
            return False
        parked.set_result(None)
        return True

    def abandon(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._port = None
        if self._early_loss is None:
            self.cancel_owner()
            self._bridge.turn_soon()

    def throttle(self, *, enabled: bool) -> None:
        if enabled is not self._throttled:
            self._throttled = enabled
            throttle(self._socket_tag, enabled=enabled)

    def lost_local_address(self) -> bool:
        return has_lost_address(self._socket_tag)

    async def move(self, read: _Read, write: _Write) -> str:
        """Wait for the start, then move packets until the call ends. Return the cause of its end."""
        while self._port is None:
            await self._park()
        writer = self._bridge.start(self._write_packets(write))
        try:
            return await self._read_packets(read)
        finally:
            self._stopping = True
            if self._parked is not None:
                writer.cancel()

    async def _read_packets(self, read: _Read) -> str:
        while True:
            try:
                data = await read()
            except Exception as error:
                return failure_detail(error)
            if data is aio.EOF:
                return "the server closed the call"
            if self._port is not None:
                self._port.packet_received(data)
            data = None  # so that an idle carrier holds no packet

    async def _write_packets(self, write: _Write) -> None:
        try:
            while self._port is not None and not self._stopping:
                packet = self._port.next_packet()
                if packet is None:
                    await self._park()
                    continue
                self._single_wake, self._wakes = self._wakes <= 1, 0
                if not await _write_one(write, packet):
                    await self._wait_for_reader()
                packet = None
        except asyncio.CancelledError:
            # Return normally, because a cancelled task keeps its exception with all frames.
            return

    async def _wait_for_reader(self) -> None:
        if self._stopping:
            return
        await asyncio.sleep(READER_SECONDS)
        if not self._stopping:
            self.cancel_owner()

    async def _park(self) -> None:
        self._parked = asyncio.get_running_loop().create_future()
        await self._parked

    def report_loss(self, detail: str) -> None:
        """Report the call's end to the port. Before ``start``, keep ``detail`` for the coming port."""
        self._early_loss = detail
        port, self._port = self._port, None
        if port is not None and not self._ended:
            self._ended = True
            port.carrier_lost(detail)


async def _write_one(write: _Write, packet: bytes) -> bool:
    try:
        await write(packet)
    except Exception:
        return False
    return True


def failure_detail(error: Exception) -> str:
    """Return the most useful text about a failed call, for people."""
    if isinstance(error, aio.AioRpcError):
        return str(error.details() or error.code().name.lower())
    return f"{type(error).__name__}: {error}"
