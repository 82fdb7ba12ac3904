"""A network in the hands of a test: each packet is taken, delivered or lost when the test says so."""

from __future__ import annotations

from collections import deque

from tunnel_core.carrier.interface import Carrier, CarrierPort, Peer
from tunnel_core.session.session import Session

MOST_UNDER_WAY = 3
"""Packets that a carrier takes before it is busy."""


class End(Carrier):
    """One end of a carrier. Each end learns of a break by itself, if and when the test says so."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.port: CarrierPort | None = None
        self.other: End
        self.under_way: deque[bytes] = deque()
        self.broken = False

    def start(self, port: CarrierPort) -> None:
        self.port = None if self.broken else port
        if self.broken:
            port.carrier_lost("it was broken before it began")

    def hand_over(self, port: CarrierPort) -> None:
        if self.port is not None:
            self.port = port

    def wake(self) -> None:
        """The test asks when it wants to."""

    def abandon(self) -> None:
        self.broken, self.port = True, None

    def take(self) -> bool:
        """Takes a packet from the port; whether there was one."""
        if self.port is None or len(self.under_way) >= MOST_UNDER_WAY:
            return False
        packet = self.port.next_packet()
        if packet is not None:
            self.under_way.append(packet)
        return packet is not None

    def deliver(self) -> bool:
        """The oldest packet under way arrives, also if its sender is gone; whether there was one."""
        if not self.under_way or (self.other.port is None and not self.other.broken):
            return False
        data = self.under_way.popleft()
        if self.other.port is not None:
            self.other.port.packet_received(data)
        return True

    def lose(self) -> None:
        """This end learns that the carrier is no more; what it sent and did not arrive may still do."""
        port, self.port, self.broken = self.port, None, True
        if port is not None:
            port.carrier_lost("lost by the test")

    @property
    def is_over(self) -> bool:
        return self.broken and not self.under_way


class Network:
    """Every carrier that was dialled. ``cut``: nothing that is dialled answers."""

    def __init__(self) -> None:
        self.ends: list[End] = []

    def dial(self, leaf_pem: bytes) -> tuple[End, End]:
        """The server's end and the agent's."""
        near, far = End(Peer("192.0.2.7:1", "TLSv1.3", leaf_pem)), End(Peer("server.test:7001"))
        near.other, far.other = far, near
        self.ends += [near, far]
        return near, far

    def forget_over(self) -> None:
        self.ends = [end for end in self.ends if not (end.is_over and end.other.is_over)]

    def flush(self) -> bool:
        """Everything that can move moves, and each end hears of the other's end; whether anything did."""
        moved = False
        for end in list(self.ends):
            while end.take() or end.deliver():
                moved = True
            if end.broken and not end.under_way and not end.other.broken:
                end.other.lose()
                moved = True
        self.forget_over()
        return moved

    def owners(self, link: Session) -> int:
        """How many carriers move this link's packets."""
        return sum(getattr(end.port, "_link", None) is link for end in self.ends)
