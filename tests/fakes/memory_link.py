"""Two links over a carrier in memory, attached, and streams through them: the core without gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from tests.fakes.memory_carrier import MemoryCarrier, memory_carriers
from tunnel_core.carrier import Carrier
from tunnel_core.credit import CreditPool
from tunnel_core.frames import Hello, Rejected, Service, Welcome
from tunnel_core.limits import Limits
from tunnel_core.link import Link
from tunnel_core.names import Target
from tunnel_core.session import VERSION, AgentSteps, ServerSteps
from tunnel_core.stream import Stream

TARGET = Target(host="localhost", port=22)


def hello(limits: Limits) -> Hello:
    return Hello(
        version=VERSION,
        attempt=1,
        instance=b"i" * 16,
        boot=b"b" * 16,
        software="qanat-agent/test",
        services=(Service("web", "http", "127.0.0.1:80"),),
        initial_credit=limits.initial_credit,
    )


def welcome(limits: Limits) -> Welcome:
    return Welcome(
        version=VERSION,
        session=b"s" * 16,
        secret=b"x" * 32,
        have=0,
        software="qanat-server/test",
        ping_interval_ms=int(limits.ping_interval_seconds * 1000),
        missed_pings=limits.missed_pings,
        max_streams=limits.max_streams,
        early_data_limit=limits.early_data,
        initial_credit=limits.initial_credit,
    )


@dataclass
class LinkPair:
    """An attached server's and agent's link. ``opened`` receives what the server opens."""

    server: Link
    agent: Link
    opened: trio.MemoryReceiveChannel[Stream]
    carriers: tuple[Carrier, Carrier]

    async def streams(self) -> tuple[Stream, Stream]:
        """A stream as the server has it, and as the agent has it, accepted."""
        near = self.server.open(TARGET, user="operator", entrance="tcp")
        far = await self.opened.receive()
        far.accept("127.0.0.1:22")
        await near.wait_opened()
        return near, far


def make_links(
    server_carrier: Carrier, agent_carrier: Carrier, limits: Limits, answer: Welcome | Rejected | None = None
) -> LinkPair:
    """Links that are not running yet."""
    send, receive = trio.open_memory_channel[Stream](1000)
    steps = ServerSteps(lambda _: answer or welcome(limits))
    pools = CreditPool(limits.credit_pool), CreditPool(limits.credit_pool)
    server = Link(server_carrier, steps, node="edge1", limits=limits, pool=pools[0])
    agent = Link(
        agent_carrier,
        AgentSteps(hello(limits)),
        node="edge1",
        limits=limits,
        pool=pools[1],
        on_open=send.send_nowait,
    )
    return LinkPair(server, agent, receive, (server_carrier, agent_carrier))


@asynccontextmanager
async def memory_links(limits: Limits | None = None) -> AsyncIterator[LinkPair]:
    """Attached links; given up at the end of the block."""
    async with trio.open_nursery() as nursery:
        ends: tuple[MemoryCarrier, MemoryCarrier] = memory_carriers(nursery)
        pair = make_links(*ends, limits or Limits())
        nursery.start_soon(pair.server.run)
        nursery.start_soon(pair.agent.run)
        await pair.agent.wait_attached()
        await pair.server.wait_attached()
        yield pair
        nursery.cancel_scope.cancel()
