"""Small TCP servers on loopback, as targets and as servers that behave badly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio


@asynccontextmanager
async def listening(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """Serves until the end of the block; yields ``127.0.0.1:port``. Peers that break off are forgiven."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):
                await handler(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    """Echoes until the end, says bye, and ends too."""
    async for data in stream:
        await stream.send_all(data)
    await stream.send_all(b" bye")


async def ignore(stream: trio.SocketStream) -> None:
    """Reads once and ends."""
    await stream.receive_some()
