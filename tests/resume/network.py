"""A network that a test controls: the test takes, delivers or loses each packet."""

from __future__ import annotations

from collections import deque

from tunnel_core.carrier.interface import Carrier, CarrierPort, Peer
from tunnel_core.session.session import Session

MOST_UNDER_WAY = 3
"""Packets that a carrier takes before it is busy."""


class End(Carrier):
    """One end of a carrier. The test decides whether, and when, each end is informed of a break."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.port: CarrierPort | None = None
        self.other: End
        self.under_way: deque[bytes] = deque()
        self.broken = False

    def start(self, port: CarrierPort) -> None:
        self.port = None if self.broken else port
        if self.broken:
            port.carrier_lost("the carrier broke before its start")

    def hand_over(self, port: CarrierPort) -> None:
        if self.port is not None:
            self.port = port

    def wake(self) -> None:
        """Do nothing: the test decides when to ask the port."""

    def abandon(self) -> None:
        self.broken, self.port = True, None

    def take(self) -> bool:
        """Take a packet from the port. Returns whether there was one."""
        if self.port is None or len(self.under_way) >= MOST_UNDER_WAY:
            return False
        packet = self.port.next_packet()
        if packet is not None:
            self.under_way.append(packet)
        return packet is not None

    def deliver(self) -> bool:
        """Deliver the oldest packet under way, even if its sender is gone. Returns whether there was one."""
        if not self.under_way or (self.other.port is None and not self.other.broken):
            return False
        data = self.under_way.popleft()
        if self.other.port is not None:
            self.other.port.packet_received(data)
        return True

    def lose(self) -> None:
        """Inform this end that its carrier is lost. Packets that it sent may still arrive."""
        port, self.port, self.broken = self.port, None, True
        if port is not None:
            port.carrier_lost("lost by the test")

    @property
    def is_over(self) -> bool:
        return self.broken and not self.under_way


class Network:
    """Every carrier that was dialled and is not over at both ends."""

    def __init__(self) -> None:
        self.ends: list[End] = []

    def dial(self, leaf_pem: bytes) -> tuple[End, End]:
        """Return the server's end and the agent's end of a new carrier."""
        near, far = End(Peer("192.0.2.7:1", "TLSv1.3", leaf_pem)), End(Peer("server.test:7001"))
        near.other, far.other = far, near
        self.ends += [near, far]
        return near, far

    def forget_over(self) -> None:
        self.ends = [end for end in self.ends if not (end.is_over and end.other.is_over)]

    def flush(self) -> bool:
        """Move every packet that can move, and report breaks to the other ends. Returns whether any did."""
        moved = False
        for end in list(self.ends):
            while end.take() or end.deliver():
                moved = True
            if end.broken and not end.under_way and not end.other.broken:
                end.other.lose()
                moved = True
        self.forget_over()
        return moved

    def owners(self, session: Session) -> int:
        """Return how many carriers move the packets of this session.

        The attachment is the port until it has sent the last frame of the attach; then the session is.
        """
        return sum(end.port is not None and end.port in (session, session.attachment) for end in self.ends)
