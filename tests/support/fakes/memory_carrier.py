"""Two ends of a carrier that moves encoded packets in memory, with trio tasks instead of a loop."""

from __future__ import annotations

import trio

from tunnel_core.carrier.interface import Carrier, CarrierPort, Peer


class MemoryCarrier(Carrier):
    """One end. It holds one packet on its way to the other end, so a slow peer slows the sender down."""

    def __init__(self, nursery: trio.Nursery, peer: Peer) -> None:
        self.peer = peer
        self.packets: list[bytes] = []  # everything this end has sent, for tests to look at
        self.swallow = False  # packets sent from here are lost, and neither end is informed
        self._nursery = nursery
        self._other: MemoryCarrier | None = None  # None once broken: no reference cycle
        self._port: CarrierPort | None = None
        self._wanted = trio.Event()
        self._scope = trio.CancelScope()
        self._lost: str | None = None
        self._sender: trio.MemorySendChannel[bytes]
        self._receiver: trio.MemoryReceiveChannel[bytes]

    def start(self, port: CarrierPort) -> None:
        assert self._port is None
        self._port = port
        self._nursery.start_soon(self._move)

    def hand_over(self, port: CarrierPort) -> None:
        if self._port is not None:
            self._port = port

    def wake(self) -> None:
        self._wanted.set()

    def abandon(self) -> None:
        self._port = None
        self._break("the other end abandoned the carrier")

    def cut(self) -> None:
        """Break the carrier for both ends, as a lost connection does. Packets on their way are lost."""
        self._break("cut")

    def _break(self, detail: str) -> None:
        other, self._other = self._other, None
        for end in (self, other):
            if end is not None and end._lost is None:
                end._other = None
                end._lost = detail
                end._scope.cancel()
                end._sender.close()
                end._receiver.close()

    async def _move(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_packets)
                nursery.start_soon(self._receive_packets)
        port, self._port = self._port, None
        if port is not None and self._lost is not None:
            port.carrier_lost(self._lost)

    async def _send_packets(self) -> None:
        while self._port is not None:
            self._wanted = trio.Event()
            packet = self._port.next_packet()
            if packet is None:
                await self._wanted.wait()
                continue
            self.packets.append(packet)
            if not self.swallow:
                await self._sender.send(packet)

    async def _receive_packets(self) -> None:
        async for data in self._receiver:
            if self._port is None:
                return
            self._port.packet_received(data)


def memory_carriers(
    nursery: trio.Nursery, *, leaf_pem: bytes = b"", buffered_packets: int = 1
) -> tuple[MemoryCarrier, MemoryCarrier]:
    """Return the server's end and the agent's end. ``leaf_pem`` is the agent's leaf as the server sees it."""
    server = MemoryCarrier(nursery, Peer("127.0.0.1:1", "TLSv1.3", leaf_pem))
    agent = MemoryCarrier(nursery, Peer("server.test:7001"))
    server._other, agent._other = agent, server
    for sending, receiving in ((server, agent), (agent, server)):
        sending._sender, receiving._receiver = trio.open_memory_channel[bytes](buffered_packets)
    return server, agent
