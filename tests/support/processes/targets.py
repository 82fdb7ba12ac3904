"""Targets at an edge, as a program: ``python -m tests.support.processes.targets HOST KIND:PORT ...``.

Kinds: ``echo`` sends back every byte, and half-closes after its peer did. ``silent`` reads and never
answers. ``flood`` sends for ever. ``greet`` sends one line first, then echoes. ``source`` receives a
number and sends that many bytes (``content``).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Awaitable, Callable

import trio

from tests.support.net import content

Handler = Callable[[trio.SocketStream], Awaitable[None]]
_CHUNK = bytes(64 * 1024)
GREETING = b"hello from the edge\r\n"


async def _echo(stream: trio.SocketStream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)


async def _silent(stream: trio.SocketStream) -> None:
    async for _ in stream:
        pass


async def _flood(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(_CHUNK)


async def _greet(stream: trio.SocketStream) -> None:
    await stream.send_all(GREETING)
    await _echo(stream)


async def _source(stream: trio.SocketStream) -> None:
    request = b""
    while len(request) < content.COUNT.size and (chunk := await stream.receive_some(content.COUNT.size)):
        request += chunk
    for block in content.blocks(content.COUNT.unpack(request)[0]):
        await stream.send_all(block)
    await stream.send_eof()


_KINDS: dict[str, Handler] = {
    "echo": _echo,
    "silent": _silent,
    "flood": _flood,
    "greet": _greet,
    "source": _source,
}


async def _serve(handler: Handler, stream: trio.SocketStream) -> None:
    async with stream:
        try:
            await handler(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


async def main(host: str, *listeners: str) -> None:
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            kind, _, port = listener.partition(":")
            serve = functools.partial(_serve, _KINDS[kind])
            await nursery.start(functools.partial(trio.serve_tcp, serve, int(port), host=host))
        sys.stdout.write("ready\n")
        sys.stdout.flush()


if __name__ == "__main__":
    trio.run(functools.partial(main, *sys.argv[1:]))
