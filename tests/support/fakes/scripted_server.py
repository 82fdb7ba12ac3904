"""A small server for the client's tests: real TLS and HTTP on a real port, with scripted answers."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import trio

from certs.x509 import Usage, proven_leaf
from tests.support.pki.authority import server_context
from tunnel_core.http.server import HttpConnection, header_values, serve_http
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tls import TlsStream

Target = Callable[[trio.abc.HalfCloseableStream, bytes], Awaitable[None]]


async def echo(stream: trio.abc.HalfCloseableStream, first: bytes) -> None:
    """Send every byte back, then end."""
    await stream.send_all(first)
    async for chunk in stream:
        await stream.send_all(chunk)
    await stream.send_eof()


@dataclass
class FakeServer:
    """A server that answers API pages from ``pages`` and CONNECT from ``targets``, by ``Qanat-Target``."""

    port: int = 0
    pages: dict[str, Any] = field(default_factory=dict)
    targets: dict[str, Target | Refused] = field(default_factory=lambda: {"localhost:7": echo})
    authorities: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    async def handle(self, http: HttpConnection, request: h11.Request) -> None:
        if request.method == b"CONNECT":
            await self._connect(http, request)
        else:
            await self._page(http, request)

    async def _connect(self, http: HttpConnection, request: h11.Request) -> None:
        self.authorities.append(request.target.decode())
        [name] = header_values(request, b"qanat-target")
        target = self.targets.get(name.decode(), Refused(Reason.TARGET_NOT_ALLOWED, "no such target"))
        if isinstance(target, Refused):
            raise target
        first = await http.accept_connect()
        await target(http.stream, first)  # type: ignore[arg-type]

    async def _page(self, http: HttpConnection, request: h11.Request) -> None:
        path = request.target.decode().removeprefix("/api/v1/")
        page = self.pages.get(path)
        if page is None and path.startswith("nodes?limit="):
            page = self.pages.get("nodes")  # as a server that knows no pages of a list answers
        if page is None:
            raise Refused(Reason.NOT_FOUND, "there is no such page")
        body = page if isinstance(page, bytes) else json.dumps(page).encode()
        await http.respond(200, body=body)


@asynccontextmanager
async def fake_server(folder: Path, *, context: ssl.SSLContext | None = None) -> AsyncIterator[FakeServer]:
    """Serve over mTLS on 127.0.0.1."""
    server = FakeServer()
    context = context or server_context(folder)

    async def serve(accepted: trio.SocketStream) -> None:
        tcp = SocketStream.adopt(accepted)
        tls = TlsStream(tcp, context, server_side=True)
        try:
            await tls.do_handshake()
            server.users.append(proven_leaf(tls.peer_certificate(), usage=Usage.CLIENT).identity.name)
            await serve_http(tls, server.handle)
        except trio.BrokenResourceError:
            pass  # one end refused the other's certificate
        finally:
            tcp.close_nowait()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def fake_unix_server(path: Path) -> AsyncIterator[FakeServer]:
    """Serve plain HTTP on a unix socket."""
    server = FakeServer()

    async def serve(accepted: trio.SocketStream) -> None:
        await serve_http(SocketStream.adopt(accepted), server.handle)

    async with trio.open_nursery() as nursery:
        sock = trio.socket.socket(trio.socket.AF_UNIX)
        await sock.bind(str(path))
        sock.listen()
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(sock)])
        yield server
        nursery.cancel_scope.cancel()
