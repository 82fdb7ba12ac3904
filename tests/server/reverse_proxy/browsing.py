"""A browser without connection, and targets that keep theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import h11
import trio

from tests.support.fakes.edge import TRUST_DOMAIN, Edge, receive_until
from tests.support.fakes.fake_session import Agent, FarEnd
from tunnel_core.identity import Role
from tunnel_core.names import Target
from tunnel_core.reasons import Reason
from tunnel_server.access.opener import StreamRequest
from tunnel_server.access.routing import NodeRoute
from tunnel_server.auth.users import User
from tunnel_server.reverse_proxy.exchange import Exchange
from tunnel_server.reverse_proxy.hosts import Hosts, Origin
from tunnel_server.reverse_proxy.http1 import browser_request
from tunnel_server.reverse_proxy.messages import AnswerEnd, AnswerEvent, AnswerHead, BrowserRequest, Headers
from tunnel_server.reverse_proxy.pool import TargetPool

HOST = ("Host", "red--edge1.localhost")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
ALICE = User("alice", Role.USER, TRUST_DOMAIN)


def asked(
    *headers: tuple[str, str], method: str = "GET", target: str = "/", source: str = "192.0.2.1"
) -> BrowserRequest:
    return browser_request(h11.Request(method=method, target=target, headers=[HOST, *headers]), source)


def wanted(
    user: User = ALICE,
    *,
    node: str = "edge1",
    service: str = "red",
    entrance: str = "web",
    source: str = "192.0.2.1:5000",
) -> StreamRequest:
    return StreamRequest(user, NodeRoute(node, Target(service=service)), entrance, source, target_tls=True)


class FakeBrowser:
    """One request whose body is ``body``. ``sent`` has what the browser receives."""

    def __init__(
        self,
        request: BrowserRequest | None = None,
        body: Sequence[bytes] = (),
        trailers: Headers | None = None,
        connection: object = "connection",
    ) -> None:
        self.request = request or asked()
        self.connection = connection
        self.trailers = trailers or []
        self.sent: list[AnswerEvent] = []
        self.writes = 0
        self.aborted: Reason | None = None
        self.left = trio.Event()
        self.asked_for_body = 0
        self.raw: trio.abc.Stream | None = None
        self.early = b""
        self._body = list(body)

    @property
    def has_answered(self) -> bool:
        return any(isinstance(event, AnswerHead) and event.status >= 200 for event in self.sent)

    async def receive_body(self) -> bytes:
        self.asked_for_body += 1
        await trio.lowlevel.checkpoint()
        if self._body and not self._body[0]:
            await trio.sleep_forever()
        return self._body.pop(0) if self._body else b""

    async def send(self, *events: AnswerEvent) -> None:
        await trio.lowlevel.checkpoint()
        if self.left.is_set():
            raise trio.BrokenResourceError
        self.sent += events
        self.writes += 1

    async def switch(self, head: AnswerHead) -> tuple[trio.abc.Stream, bytes]:
        self.sent.append(head)
        assert self.raw is not None
        return self.raw, self.early

    def abort(self, reason: Reason) -> None:
        self.aborted = reason

    async def wait_left(self) -> None:
        await self.left.wait()

    @property
    def statuses(self) -> list[int]:
        return [event.status for event in self.sent if isinstance(event, AnswerHead)]

    @property
    def body(self) -> bytes:
        return b"".join(event for event in self.sent if isinstance(event, bytes))

    @property
    def is_complete(self) -> bool:
        return bool(self.sent) and isinstance(self.sent[-1], AnswerEnd)


@asynccontextmanager
async def kept(edge: Edge) -> AsyncIterator[TargetPool]:
    """Yield a pool that keeps connections."""
    pool = TargetPool(edge.opener)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run)
        await trio.lowlevel.checkpoint()
        while not pool.keeps:
            await trio.lowlevel.checkpoint()
        yield pool
        nursery.cancel_scope.cancel()


async def browse(
    pool: TargetPool, browser: FakeBrowser | None = None, request: StreamRequest | None = None
) -> FakeBrowser:
    browser = browser or FakeBrowser()
    hosts = Hosts(Origin(b"http", browser.request.authority), Origin(b"http", b"localhost:1880"))
    await Exchange(browser, "red on edge1", pool, hosts, claims=False).run(request or wanted())
    return browser


def keep_alive(*answers: bytes, seen: list[bytes] | None = None) -> Agent:
    """Return a target that answers each request, in turn and then with the last one, and never ends."""

    async def agent(far: FarEnd) -> None:
        far.accept()
        for index in range(1_000):
            request = await receive_until(far.stream, b"\r\n\r\n")
            if b"Content-Length: 1\r\n" in request and request.endswith(b"\r\n\r\n"):
                request += await far.stream.receive_some()
            if seen is not None:
                seen.append(request)
            await far.stream.send_all(answers[min(index, len(answers) - 1)])

    return lambda far: until_closed(agent, far)


async def until_closed(agent: Agent, far: FarEnd) -> None:
    """Run ``agent`` until the stream is closed or reset."""
    try:
        await agent(far)
    except (trio.BrokenResourceError, trio.ClosedResourceError, AssertionError):
        assert far.near.is_closed
