"""Two attached sessions over a carrier in memory, and streams through them: the core without gRPC.

A lost carrier is not replaced, and by default there is no grace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from tests.support.fakes.memory_carrier import memory_carriers
from tunnel_core.carrier.interface import Carrier
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.names import Target
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import VERSION, AgentHandshake, ServerHandshake
from tunnel_core.session.session import Session
from tunnel_core.streams.tunnel_stream import TunnelStream
from tunnel_core.wire.frames import Hello, Service, SessionSecret, Welcome

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


def welcome(limits: Limits, grace_ms: int = 0) -> Welcome:
    return Welcome(
        version=VERSION,
        session=b"s" * 16,
        secret=SessionSecret(b"x" * 32),
        have=0,
        software="qanat-server/test",
        ping_interval_ms=int(limits.ping_interval_seconds * 1000),
        missed_pings=limits.missed_pings,
        max_streams=limits.max_streams,
        early_data_limit=limits.early_data,
        initial_credit=limits.initial_credit,
        grace_ms=grace_ms,
    )


@dataclass
class LinkPair:
    """The attached sessions of a server and an agent. ``opened`` receives what the server opens."""

    server: Session
    agent: Session
    opened: trio.MemoryReceiveChannel[TunnelStream]
    carriers: tuple[Carrier, Carrier]

    async def streams(self) -> tuple[TunnelStream, TunnelStream]:
        """Return an accepted stream, as the server and as the agent have it."""
        near = self.server.open(TARGET, user="operator", entrance="tcp")
        far = await self.opened.receive()
        far.accept("127.0.0.1:22")
        await near.wait_opened()
        return near, far


async def attach_links(
    nursery: trio.Nursery,
    server_carrier: Carrier,
    agent_carrier: Carrier,
    limits: Limits,
    grace_ms: int = 0,
) -> LinkPair:
    """Return attached sessions that run in ``nursery``."""
    send, receive = trio.open_memory_channel[TunnelStream](1000)
    offer = welcome(limits, grace_ms)
    begun: list[Session] = []
    has_begun = trio.Event()

    def on_used(attachment: Attachment) -> None:
        assert attachment.handshake.hello is not None
        begun.append(_session(attachment.handshake.hello, offer, limits, opener=True))
        begun[0].move_to(attachment, 0)
        has_begun.set()

    server = Attachment(server_carrier, ServerHandshake(lambda _: offer), on_used)
    agent = Attachment(agent_carrier, AgentHandshake(hello(limits)))
    nursery.start_soon(server.settle, limits.attach_timeout_seconds)
    await agent.settle(limits.attach_timeout_seconds)
    session = _session(hello(limits), agent.welcome, limits, opener=False, on_open=send.send_nowait)
    agent.use(session)
    nursery.start_soon(session.run)
    await has_begun.wait()
    nursery.start_soon(begun[0].run)
    return LinkPair(begun[0], session, receive, (server_carrier, agent_carrier))


def _session(
    sent: Hello,
    answer: Welcome,
    limits: Limits,
    *,
    opener: bool,
    on_open: Callable[[TunnelStream], None] | None = None,
) -> Session:
    pool = CreditPool(limits.credit_pool)
    return Session(sent, answer, opener=opener, node="edge1", limits=limits, pool=pool, on_open=on_open)


@asynccontextmanager
async def memory_links(limits: Limits | None = None, grace_ms: int = 0) -> AsyncIterator[LinkPair]:
    """Yield attached sessions. They end with the block."""
    async with trio.open_nursery() as nursery:
        yield await attach_links(nursery, *memory_carriers(nursery), limits or Limits(), grace_ms)
        nursery.cancel_scope.cancel()
