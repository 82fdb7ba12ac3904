"""A carrier's port that keeps what it receives and sends what a test queues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from tunnel_core.carrier.interface import Carrier
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.frames import Data, Malformed, Packet, Ping


class RecordingPort:
    """A port that starts ``carrier`` with itself. :meth:`wait` waits for any change."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.received: list[Packet | Malformed] = []
        self.sizes: list[int] = []
        self.lost: list[str] = []
        self.asked = 0
        self.is_idle = False  # the carrier found nothing to send
        self._out: deque[bytes] = deque()
        self._changed = trio.Event()
        carrier.start(self)

    def packet_received(self, data: bytes) -> None:
        self.received.append(decode_packet(data))
        self.sizes.append(len(data))
        self._changed.set()

    def next_packet(self) -> bytes | None:
        self.asked += 1
        self.is_idle = not self._out
        self._changed.set()
        return self._out.popleft() if self._out else None

    def carrier_lost(self, detail: str) -> None:
        self.lost.append(detail)
        self._changed.set()

    def send(self, *packets: bytes) -> None:
        """Queue encoded packets and wake the carrier."""
        self._out.extend(packets)
        self.carrier.wake()

    @property
    def queued(self) -> int:
        """Number of packets that the carrier has not taken yet."""
        return len(self._out)

    async def wait(self, done: Callable[[RecordingPort], object], seconds: float = 20) -> None:
        """Wait until ``done(self)`` is true, checked after each packet and each loss."""
        with trio.fail_after(seconds):
            while not done(self):
                self._changed = trio.Event()
                await self._changed.wait()

    async def wait_lost(self) -> str:
        await self.wait(lambda port: port.lost)
        return self.lost[0]

    async def wait_received(self, count: int) -> None:
        await self.wait(lambda port: len(port.received) >= count or port.lost)
        assert not self.lost, self.lost


def ping(token: int) -> bytes:
    """Return a small encoded packet."""
    return encode_packet(0, 0, [Ping(token)])


def bulk(size: int, number: int = 1) -> bytes:
    """Return an encoded packet with ``size`` bytes of one stream's data."""
    return encode_packet(number, 0, [Data(1, 0, bytes(size))])
