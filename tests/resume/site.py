"""A server's session acceptor and an agent that stays attached to it, over a network that the test controls.

Everything but gRPC is real: handshakes, sessions, attempts, resumption.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import trio
import trio.testing

from tests.resume.network import Network
from tests.support.fakes import memory_link
from tests.support.fakes.credentials import credential_watch
from tests.support.pki import authority as pki
from tunnel_agent.attach.failover import SessionFailover
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool, SendPool
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import AgentHandshake
from tunnel_core.session.session import Session
from tunnel_core.session.state import SessionEvent
from tunnel_core.streams.tunnel_stream import TunnelStream
from tunnel_core.telemetry.counters import Counters
from tunnel_core.wire.frames import SessionSecret
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.nodes.attach import AttachSettings, SessionAcceptor
from tunnel_server.nodes.registry import Nodes
from tunnel_server.store.audit import AuditLine

TARGET = Target.parse("localhost:22")
LEAF = pki.node_leaf("edge1").credential.certificate_pem


class Agent:
    """One run of an agent, which attaches, resumes, and attaches again when its session has ended."""

    def __init__(self, site: Site, instance: bytes, boot: bytes) -> None:
        self.session: Session | None = None
        self.failover: SessionFailover | None = None
        self.offered: Attachment | None = None
        self.ends: list[Reason] = []
        self.attempts = 0
        self._site = site
        self._instance, self._boot = instance, boot
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            while True:
                await self._live_once()
                await trio.sleep(1)

    async def _live_once(self) -> None:
        site = self._site
        try:
            attempt, self.offered = self.offered or await self.attach(10), None
            session = self._make_session(attempt)
            attempt.use(session)
        except Refused:  # also that the carrier broke meanwhile
            self.session = None
            return
        self.session = session
        self.failover = SessionFailover(
            session,
            self.attach,
            response_timeout_seconds=10,
            max_wait_seconds=30,
            on_state_change=lambda event: site.on_state_change(event),
            on_carried=trio.lowlevel.checkpoint,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            nursery.start_soon(self.failover.run)
            self.ends.append((await session.wait_ended())[0])
        self.offered = self.failover.offered

    def _make_session(self, attempt: Attachment) -> Session:
        site = self._site
        assert attempt.handshake.hello is not None
        return Session(
            attempt.handshake.hello,
            attempt.welcome,
            opener=False,
            node="edge1",
            limits=site.limits,
            pool=CreditPool(site.limits.credit_pool),
            send_pool=SendPool(site.limits.send_pool),
            on_open=site.take_stream,
        )

    async def attach(
        self,
        response_timeout_seconds: float,
        connected: Callable[[], bool] = lambda: False,
        decide: Callable[[Attachment], None] | None = None,
    ) -> Attachment:
        await trio.sleep(self._site.connect_seconds)
        self.attempts += 1
        use = connected()
        session = self.session if self.session and self.session.ended is None else None
        hello = memory_link.hello(self._site.limits)._replace(
            attempt=self.attempts,
            instance=self._instance,
            boot=self._boot,
            session=session.welcome.session if session else b"",
            secret=session.welcome.secret if session else SessionSecret(),
            have=session.received if session else 0,
            use=use,
        )
        near, far = self._site.network.dial(LEAF)
        self._site.acceptor.take(near)
        attempt = Attachment(far, AgentHandshake(hello), decide)
        await attempt.settle(response_timeout_seconds)
        return attempt


@dataclass
class Site:
    nursery: trio.Nursery
    limits: Limits
    network: Network = field(default_factory=Network)
    far: list[TunnelStream] = field(default_factory=list)
    """The agent's ends of the streams, in the order of their opening."""
    on_state_change: Callable[[SessionEvent | None], None] = lambda _: None
    audited: list[AuditLine] = field(default_factory=list)
    connect_seconds: float = 0.0
    """Duration of a dial."""

    def __post_init__(self) -> None:
        self.start_server()
        self.start_agent()

    def start_server(self) -> None:
        self.nodes = Nodes(trio.current_time, lambda: datetime.now(UTC), lambda name: False)
        settings = AttachSettings(pki.TRUST_DOMAIN, 10, self.limits)
        self.counters = Counters()
        pool = CreditPool(self.limits.credit_pool)
        refusals = Refusals(self.audited.append, trio.current_time)
        self.acceptor = SessionAcceptor(
            settings,
            self.nodes,
            pool,
            self.nursery,
            self.counters,
            credential_watch=credential_watch(),
            refusals=refusals,
            trust_bundle=bytes,
        )

    def kill_server(self) -> list[Session]:
        """Kill the server as kill -9 does: no bye, broken connections. Returns its dead sessions."""
        sessions = [session for _, session in self.nodes.attached()]
        for end in self.network.ends:
            if end.peer.leaf_pem:
                end.abandon()
                end.under_way.clear()
        self.start_server()
        return sessions

    def start_agent(self, instance: bytes = b"i" * 16, boot: bytes = b"b" * 16) -> None:
        self.agent = Agent(self, instance, boot)
        self.nursery.start_soon(self.agent.run)

    def kill_agent(self) -> None:
        """Kill the agent as kill -9 does: no bye, broken connections."""
        for end in self.network.ends:
            if not end.peer.leaf_pem:
                end.abandon()
                end.under_way.clear()
        self.agent.scope.cancel()

    def take_stream(self, stream: TunnelStream) -> None:
        self.far.append(stream)
        stream.accept("127.0.0.1:22")

    @property
    def session(self) -> Session:
        """The server's end of the session."""
        return self.nodes.session_of("edge1")

    def open(self) -> TunnelStream:
        return self.session.open(TARGET, user="kim", entrance="tcp")

    async def settle(self) -> None:
        """Wait until no task has work left without the clock. The network moves nothing."""
        await trio.testing.wait_all_tasks_blocked()

    async def flush(self) -> None:
        """Let the network move packets until no end sends more."""
        await self.settle()
        while self.network.flush():
            await self.settle()

    async def pass_time(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass, while the network moves packets."""
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            await self.flush()
            await trio.sleep(step)
        await self.flush()

    async def streams(self) -> tuple[TunnelStream, TunnelStream]:
        """Open a stream, and return both ends of it."""
        near = self.open()
        await self.flush()
        return near, self.far[-1]


@asynccontextmanager
async def open_site(limits: Limits | None = None) -> AsyncIterator[Site]:
    """Yield an attached site. Needs an autojump clock."""
    async with trio.open_nursery() as nursery:
        site = Site(nursery, limits or Limits())
        await site.pass_time(1)
        assert site.session.attached
        yield site
        nursery.cancel_scope.cancel()
