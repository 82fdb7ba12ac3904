"""Small TCP servers on loopback: targets, and servers that misbehave."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from certs.ca import Leaf
from tests.support.pki.authority import server_context


@asynccontextmanager
async def listening(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """Serve until the end of the block, and yield ``127.0.0.1:port``. Resets by peers are ignored."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):
                await handler(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tls_server(
    folder: Path,
    leaf: Leaf | None = None,
    alpn: str = "h2",
    tls12: bool = False,
    silent: bool = False,
    then: Callable[[trio.SSLStream[trio.SocketStream]], Awaitable[object]] | None = None,
) -> AsyncIterator[str]:
    """Serve TLS. ``then`` continues with the stream; without it the server ends after one receive.

    A ``silent`` server ends when its peer does.
    """
    context = server_context(folder, leaf)
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    if tls12:
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2

    async def handle(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True)
        await tls.do_handshake()
        if then is not None:
            await then(tls)
            return
        while await tls.receive_some() and silent:
            pass

    async with listening(handle) as address:
        yield address


async def echo(stream: trio.SocketStream) -> None:
    """Echo until the end, send bye, and end too."""
    async for data in stream:
        await stream.send_all(data)
    await stream.send_all(b" bye")


async def ignore(stream: trio.SocketStream) -> None:
    """Read once and end."""
    await stream.receive_some()
