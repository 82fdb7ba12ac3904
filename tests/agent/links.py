"""Two ends of a session in memory: what a server opens is served by the agent under test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from tests.fakes.memory_carrier import memory_carriers
from tunnel_core.credit import CreditPool
from tunnel_core.frames import Hello, Welcome
from tunnel_core.limits import Limits
from tunnel_core.link import Link
from tunnel_core.session import VERSION, AgentSteps, ServerSteps
from tunnel_core.stream import Stream


@dataclass(frozen=True)
class Pair:
    server: Link
    agent: Link


def welcome(hello: Hello) -> Welcome:
    return Welcome(
        version=VERSION,
        session=b"\x0b\xad\xca\xfe" * 4,
        secret=bytes(32),
        have=0,
        software="qanat-server/test",
        ping_interval_ms=15_000,
        missed_pings=2,
        max_streams=64,
        early_data_limit=16 * 1024,
        initial_credit=64 * 1024,
    )


@asynccontextmanager
async def linked(on_open: Callable[[Stream], None]) -> AsyncIterator[Pair]:
    """An attached session; ``on_open`` takes the streams that its server opens."""
    hello = Hello(VERSION, 1, bytes(16), b"", "qanat-agent/test", initial_credit=64 * 1024)
    async with trio.open_nursery() as nursery:
        at_server, at_agent = memory_carriers(nursery)
        limits, pool = Limits(), CreditPool(2**28)
        server = Link(at_server, ServerSteps(welcome), node="edge1", limits=limits, pool=pool)
        agent = Link(at_agent, AgentSteps(hello), node="edge1", limits=limits, pool=pool, on_open=on_open)
        nursery.start_soon(server.run)
        nursery.start_soon(agent.run)
        await agent.wait_attached()
        while not server.attached:
            await trio.lowlevel.checkpoint()
        yield Pair(server, agent)
        nursery.cancel_scope.cancel()
