"""A carrier that is a gRPC call of the agent. The server needs no library of gRPC: see ``http2/carrier.py``.

Theory of operation
1. One call, ``Attach``, moves packets as raw bytes: gRPC swallows what a serializer raises, and a
   deserializer's error text reaches the peer. So bytes go in and out, and the port calls the codec.
2. Two asyncio tasks own a call. The reader lives as long as the call and is the one to say why it
   ended; the writer sends what the port has and then parks until :meth:`Carrier.wake`. There is no
   time-out around a read or a write, because cancelling either cancels the call. A write under way is
   not cancelled at the end either: gRPC cannot send the status of a call meanwhile, and logs a traceback.
3. The reader never waits for anybody (credit bounds what it can be made to hold), so no flow control
   of HTTP/2 is wanted under the session's own: hence the large ``lookahead_bytes``, and no BDP probes,
   whose pings more than double what an idle carrier sends.
4. Every dial is a new channel with a connection of its own, because an agent that suspects its
   connection must not be given the same one again. Channel and call are known to their owner task
   alone, never to the carrier, and no traceback that is kept holds a frame of it: as long as anything
   refers to a call, gRPC keeps the socket with all it has queued, ``close()`` or not.
5. Dead connections: ``keepalive_timeout_ms`` becomes TCP_USER_TIMEOUT, so that the kernel drops what
   was not confirmed for so long; each dial has one of its own, by which its socket is found again. The
   keepalive pings themselves are put off for ever: liveness is the session's business, end to end.
6. An abandoned connection is severed (``grpc_sockets``): gRPC itself would keep it until its queue is empty,
   which a dead path never lets it be.

Not done here: deciding who may attach, reconnecting, pings. Nothing is read into a call's status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from tunnel_core.carrier.asyncio_bridge import Bridge
from tunnel_core.carrier.grpc_runtime import aio
from tunnel_core.carrier.grpc_sockets import has_lost_its_address, throttle
from tunnel_core.carrier.interface import Carrier, CarrierPort, Peer

_Read: TypeAlias = Callable[[], Awaitable[Any]]
_Write: TypeAlias = Callable[[bytes], Awaitable[None]]

# After a write failed the reader normally hears why; it gets this long before the call is given up.
LAST_WORDS_SECONDS = 0.5


class CallCarrier(Carrier):
    """One dialled call: the two tasks that move its packets, and how they end."""

    __slots__ = (
        "_bridge",
        "_ending",
        "_held",
        "_lost",
        "_over",
        "_parked",
        "_port",
        "_socket_tag",
        "_wakes",
        "_was_alone",
        "cancel_owner",
        "peer",
    )

    def __init__(self, bridge: Bridge, peer: Peer, socket_tag: int) -> None:
        self.peer = peer
        self._socket_tag = socket_tag  # by which its socket is found
        self.cancel_owner: Callable[[], object]
        self._bridge = bridge
        self._port: CarrierPort | None = None
        self._parked: asyncio.Future[None] | None = None
        self._wakes = 0  # since the last packet
        self._was_alone = False  # the last packet was there for one wake
        self._held = False
        self._ending = False  # the writer stops as soon as no write is under way
        self._over = False  # abandoned, or the port knows that it is lost
        self._lost: str | None = None  # why, if that was before the start

    def start(self, port: CarrierPort) -> None:
        if self._over:
            return
        self._port = port
        if self._lost is not None:
            self._bridge.call_soon(self.lose, self._lost)
        self.wake()

    def hand_over(self, port: CarrierPort) -> None:
        if self._port is not None:
            self._port = port

    def wake(self) -> None:
        if self._unpark():
            self._bridge.turn_soon()

    def wake_for_data(self) -> None:
        if self._unpark():
            # Among many, in trio's next pass, with all other wakes of this one: a turn at once would give
            # each a packet of its own, at twice the CPU. Who is alone waits for nobody.
            if self._was_alone:
                self._bridge.turn()
            else:
                self._bridge.turn_soon()

    def _unpark(self) -> bool:
        """Lets the writer look; False if it is about to, or waits for nothing."""
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
        if self._over:
            return
        self._over = True
        self._port = None
        if self._lost is None:
            self.cancel_owner()
            self._bridge.turn_soon()

    def throttle(self, *, held: bool) -> None:
        if held is not self._held:
            self._held = held
            throttle(self._socket_tag, held=held)

    def lost_local_address(self) -> bool:
        return has_lost_its_address(self._socket_tag)

    async def move(self, read: _Read, write: _Write) -> str:
        """Waits for the start, then moves packets until the call ends; returns why it did."""
        while self._port is None:
            await self._park()
        writer = self._bridge.start(self._write_packets(write))
        try:
            return await self._read_packets(read)
        finally:
            self._ending = True
            if self._parked is not None:
                writer.cancel()

    async def _read_packets(self, read: _Read) -> str:
        while True:
            try:
                data = await read()
            except Exception as error:
                return why(error)
            if data is aio.EOF:
                return "the other end closed the call"
            if self._port is not None:
                self._port.packet_received(data)
            data = None  # up to a whole packet, which an idle carrier should not hold

    async def _write_packets(self, write: _Write) -> None:
        try:
            while self._port is not None and not self._ending:
                packet = self._port.next_packet()
                if packet is None:
                    await self._park()
                    continue
                self._was_alone, self._wakes = self._wakes <= 1, 0
                if not await _write_one(write, packet):
                    await self._hear_last_words()
                packet = None
        except asyncio.CancelledError:
            # Ends as if by itself: a task that was cancelled keeps the exception with its frames.
            return

    async def _hear_last_words(self) -> None:
        if self._ending:
            return
        await asyncio.sleep(LAST_WORDS_SECONDS)
        if not self._ending:
            self.cancel_owner()

    async def _park(self) -> None:
        self._parked = asyncio.get_running_loop().create_future()
        await self._parked

    def lose(self, detail: str) -> None:
        """Tells the port, or whoever will be the port, that the call is over."""
        self._lost = detail
        port, self._port = self._port, None
        if port is not None and not self._over:
            self._over = True
            port.carrier_lost(detail)


async def _write_one(write: _Write, packet: bytes) -> bool:
    try:
        await write(packet)
    except Exception:
        return False
    return True


def why(error: Exception) -> str:
    """The best there is to tell about a failed call, for people."""
    if isinstance(error, aio.AioRpcError):
        return str(error.details() or error.code().name.lower())
    return f"{type(error).__name__}: {error}"
