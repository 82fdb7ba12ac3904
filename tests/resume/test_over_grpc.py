"""A real TCP connection between agent and server is cut, and the streams continue over the next one."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
import trio

from tests.support.fakes.credentials import credential_watch
from tests.support.fakes.grpc_site import open_site
from tests.support.pki import authority as pki
from tunnel_agent.attach import connector as connect
from tunnel_agent.attach.connector import Connector
from tunnel_agent.network.proxy_choice import ProxyChoice
from tunnel_core.identity import Role
from tunnel_core.limits import MIB, Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.names import Target
from tunnel_core.reasons import Reason
from tunnel_core.streams.tunnel_stream import TunnelStream
from tunnel_core.telemetry.counters import Counters
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.events.event_log import EventKind, NodeEvent
from tunnel_server.nodes.attach import AttachSettings, SessionAcceptor
from tunnel_server.nodes.registry import Nodes
from tunnel_server.store.audit import AuditLine


class Wire:
    """A TCP port that forwards to another port until the test cuts the connections."""

    def __init__(self, port: int, nursery: trio.Nursery) -> None:
        self.port = 0
        self.count = 0  # of the connections made so far
        self._target = port
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()

    async def open(self) -> None:
        listeners = await self._nursery.start(trio.serve_tcp, self._carry, 0)
        self.port = listeners[0].socket.getsockname()[1]

    def cut(self) -> None:
        for scope in self._scopes:
            scope.cancel()

    async def _carry(self, near: trio.SocketStream) -> None:
        self.count += 1
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            async with (
                near,
                await trio.open_tcp_stream("127.0.0.1", self._target) as far,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(_pump, near, far)
                nursery.start_soon(_pump, far, near)
        self._scopes.discard(scope)


async def _pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
    except trio.BrokenResourceError:
        pass


@asynccontextmanager
async def attached() -> AsyncIterator[tuple[Nodes, Wire, trio.MemoryReceiveChannel[TunnelStream]]]:
    nodes, limits = Nodes(trio.current_time, lambda: datetime.now(UTC), lambda name: False), Limits()
    send, receive = trio.open_memory_channel[TunnelStream](10)
    there = trio.Event()

    def heard(_: NodeEvent) -> None:
        there.set()

    nodes.events.subscribe(heard)

    def take(stream: TunnelStream) -> None:
        stream.accept("127.0.0.1:22")
        send.send_nowait(stream)

    async with open_site() as site, trio.open_nursery() as nursery:
        settings = AttachSettings(pki.TRUST_DOMAIN, 10, limits)
        watch = credential_watch()
        refusals = Refusals(list[AuditLine]().append, trio.current_time)
        pool = CreditPool(limits.credit_pool)
        acceptor = SessionAcceptor(
            settings,
            nodes,
            pool,
            nursery,
            Counters(),
            credential_watch=watch,
            refusals=refusals,
            trust_bundle=bytes,
        )
        site.on_carrier = acceptor.take
        wire = Wire(site.port, nursery)
        await wire.open()
        connector = Connector(
            bridge=site.bridge,
            bundle=pki.bundle_of(Role.NODE, "edge1"),
            proxy=ProxyChoice(environment={}),
            limits=limits,
            connect_timeout_seconds=5,
            services=(),
            on_open=take,
            on_state_change=lambda _: None,
        )
        with trio.fail_after(60):
            async with connector.open_session(f"localhost:{wire.port}"):
                await there.wait()
                yield nodes, wire, receive
        nursery.cancel_scope.cancel()


async def test_streams_continue_over_the_next_connection() -> None:
    content = bytes(range(256)) * 1024 * 64  # 16 MiB
    async with attached() as (nodes, wire, opened):
        near = nodes.session_of("edge1").open(Target.parse("localhost:22"), user="kim", entrance="tcp")
        far = await opened.receive()
        digests = {"down": hashlib.sha256(), "up": hashlib.sha256()}

        async def send(stream: TunnelStream) -> None:
            for start in range(0, len(content), MIB):
                await stream.send_all(content[start : start + MIB])
                await trio.sleep(0.02)
            await stream.send_eof()

        async def receive(stream: TunnelStream, name: str) -> None:
            async for data in stream:
                digests[name].update(data)

        async def cut() -> None:
            for _ in range(3):
                await trio.sleep(0.3)
                wire.cut()

        session = nodes.session_of("edge1").session_id
        async with trio.open_nursery() as both:
            both.start_soon(send, near)
            both.start_soon(send, far)
            both.start_soon(receive, near, "up")
            both.start_soon(receive, far, "down")
            both.start_soon(cut)
        true = hashlib.sha256(content).digest()
        assert [digest.digest() for digest in digests.values()] == [true, true]
        assert EventKind.RESUMED in [event.kind for event in nodes.events.after()]
        assert nodes.session_of("edge1").session_id == session
        for stream in (near, far):
            stream.reset(Reason.USER_LEFT)


class Route:
    """A replacement of the kernel's announcements about the route to the server."""

    made: Route

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.on_change = on_change
        self.watched: list[list[str]] = []
        Route.made = self

    def watch(self, addresses: Iterable[str]) -> None:
        self.watched.append(list(addresses))


async def until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while True:
            if is_so():
                return
            await trio.sleep(0.01)


async def test_a_changed_route_starts_an_attempt_and_each_carrier_renews_the_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connect, "RouteWatcher", Route)
    async with attached() as (nodes, wire, _):
        route = Route.made
        await until(lambda: bool(route.watched))
        assert "127.0.0.1" in route.watched[0]
        route.on_change()
        await until(lambda: wire.count == 2)
        known = len(route.watched)
        wire.cut()
        await until(lambda: EventKind.RESUMED in [event.kind for event in nodes.events.after()])
        await until(lambda: len(route.watched) > known)
    route.on_change()  # without a session there is nothing to be done
