"""A carrier that takes every packet inside the wake, as an idle gRPC call does. Tests deliver by hand."""

from __future__ import annotations

from collections import deque

from tunnel_core.carrier.interface import Carrier, CarrierPort, Peer
from tunnel_core.wire.codec import decode_packet
from tunnel_core.wire.frames import Malformed, Packet


class EagerCarrier(Carrier):
    """One end. While ``busy`` is set it takes nothing, like a carrier in the middle of a write."""

    def __init__(self) -> None:
        self.peer = Peer("eager.test:1")
        self.port: CarrierPort | None = None
        self.packets: deque[bytes] = deque()  # taken and not delivered yet
        self.busy = False
        self._asking = False
        self.abandoned = False

    def start(self, port: CarrierPort) -> None:
        self.port = port
        self.wake()

    def hand_over(self, port: CarrierPort) -> None:
        if self.port is not None:
            self.port = port

    def wake(self) -> None:
        if self._asking:
            return  # the loop below asks again
        self._asking = True
        while self.port is not None and not self.busy and (packet := self.port.next_packet()) is not None:
            self.packets.append(packet)
        self._asking = False

    def abandon(self) -> None:
        self.port, self.abandoned = None, True

    def deliver(self, other: EagerCarrier) -> None:
        """Hand every packet taken so far to the other end's port."""
        while self.packets:
            data = self.packets.popleft()
            if other.port is not None:
                other.port.packet_received(data)

    def peek(self) -> list[Packet | Malformed]:
        """Return the packets that were taken and not delivered."""
        return [decode_packet(data) for data in self.packets]
