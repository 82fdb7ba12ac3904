"""A relay in front of a server that falls silent, or that breaks off after the server's answer."""

from __future__ import annotations

import contextlib
from collections.abc import Collection

import trio


class Relay:
    """A relay that counts connections from 1.

    From number ``silent_from`` on no byte moves. A connection in ``cut`` breaks when the server has ended,
    and the relay keeps the server's last answer. A connection in ``dropped`` breaks at once.
    """

    def __init__(
        self,
        target: str,
        *,
        silent_from: int = 1000,
        cut: Collection[int] = (),
        dropped: Collection[int] = (),
    ) -> None:
        self._target = target
        self._silent_from = silent_from
        self._cut = cut
        self._dropped = dropped
        self.count = 0

    async def handle(self, stream: trio.SocketStream) -> None:
        self.count += 1
        number = self.count
        if number in self._dropped:
            return
        if number >= self._silent_from:
            await trio.sleep_forever()
        port = int(self._target.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as far, trio.open_nursery() as nursery:
            nursery.start_soon(self._to_server, stream, far)
            with contextlib.suppress(trio.BrokenResourceError):
                await (self._handshake_alone if number in self._cut else copy)(far, stream)
            nursery.cancel_scope.cancel()

    async def _to_server(self, stream: trio.SocketStream, far: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await copy(stream, far)

    async def _handshake_alone(self, far: trio.SocketStream, stream: trio.SocketStream) -> None:
        """Pass on the handshake alone: with TLS 1.3 the server's part of it arrives in one flight."""
        await stream.send_all(await far.receive_some())
        async for _ in far:
            pass


async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    async for data in source:
        await sink.send_all(data)
