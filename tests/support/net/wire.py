"""TCP as seen from outside: a relay that counts, proxies and breaks, and the kernel's view of sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from tunnel_core.names import split_host_port

_ESTABLISHED = "01"
_RESET_ON_CLOSE = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger: on, 0 s


class Connection(NamedTuple):
    """One end of an established connection."""

    local_port: int
    remote_port: int
    send_queue: int


def connections(port: int) -> list[Connection]:
    """Return the connections to a local port, both ends as far as they are on this machine."""
    found = []
    for line in _lines("/proc/net/tcp") + _lines("/proc/net/tcp6"):
        _, local, remote, state, queues, *_ = line.split()
        local_port, remote_port = (int(end.rpartition(":")[2], 16) for end in (local, remote))
        if state == _ESTABLISHED and port in (local_port, remote_port):
            found.append(Connection(local_port, remote_port, int(queues.partition(":")[0], 16)))
    return found


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()[1:]


def descriptors() -> int:
    """Return the number of descriptors that this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def connected_sockets(port: int) -> Iterator[socket.socket]:
    """Return copies of this process's connected sockets that have ``port`` at either end."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - plain numbers are wanted
        try:
            copy = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with closing(copy):
            try:
                ports = copy.getsockname()[1], copy.getpeername()[1]
            except (OSError, IndexError):
                continue
            if port in ports:
                yield copy


class Relay:
    """A relay. ``heads`` are the CONNECT requests that it received, if it is a proxy."""

    def __init__(self, target: str, *, is_proxy: bool = False) -> None:
        self.bytes_out = 0  # towards the target
        self.bytes_in = 0
        self.heads: list[bytes] = []
        self.address = ""
        self._target = target
        self._is_proxy = is_proxy
        self._live: set[trio.SocketStream] = set()

    def cut(self) -> None:
        """Reset every connection, both ways."""
        for stream in self._live:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            stream.socket.close()
        self._live.clear()

    async def handle(self, near: trio.SocketStream) -> None:
        target = await self._answer_connect(near) if self._is_proxy else self._target
        far = await trio.open_tcp_stream(*split_host_port(target))
        self._live |= {near, far}
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, near, far, nursery.cancel_scope)
            nursery.start_soon(self._copy, far, near, nursery.cancel_scope)
        self._live -= {near, far}

    async def _answer_connect(self, near: trio.SocketStream) -> str:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await near.receive_some()
        self.heads.append(head)
        await near.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        return head.split()[1].decode()

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
        towards_target = (await self._local(sink)) != self.address
        try:
            while data := await source.receive_some():
                self.bytes_out += len(data) * towards_target
                self.bytes_in += len(data) * (not towards_target)
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        both.cancel()

    async def _local(self, stream: trio.SocketStream) -> str:
        host, port = stream.socket.getsockname()[:2]
        return f"{host}:{port}"


@asynccontextmanager
async def open_relay(target: str = "", *, is_proxy: bool = False) -> AsyncIterator[Relay]:
    """Serve a relay on 127.0.0.1 to ``target``, or an HTTP CONNECT proxy to any requested target."""
    relay = Relay(target, is_proxy=is_proxy)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), relay.handle, 0)
        relay.address = await relay._local(listener)
        yield relay
        nursery.cancel_scope.cancel()
