"""A TCP relay that cuts, as a program: ``python -m tests.e2e.attacks.cutter LISTEN_HOST PORT TARGET_PORT``.

Both ports are of the same host. Each line on standard input is one command, answered with ``ok``. ``reset``
and ``end`` break all connections, by RST or FIN, with the bytes on their way. ``hold`` stops forwarding,
silently. ``drop`` discards the held bytes, resets, and forwards what arrives after that.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import trio

_PIECE = 256 << 10


class Cutter:
    """Relays from its port to ``host:target``."""

    def __init__(self, host: str, target: int) -> None:
        self._host = host
        self._target = target
        self._live: set[trio.SocketStream] = set()
        self._flowing = trio.Event()
        self._flowing.set()

    async def handle(self, near: trio.SocketStream) -> None:
        try:
            far = await trio.open_tcp_stream(self._host, self._target)
        except OSError:
            near.socket.close()  # the target does not listen: it may be about to start again
            return
        async with far, near:
            self._live |= {near, far}
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, near, far, nursery)
                    nursery.start_soon(self._copy, far, near, nursery)
            finally:
                self._live -= {near, far}

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream, both: trio.Nursery) -> None:
        try:
            while data := await source.receive_some(_PIECE):
                await self._flowing.wait()
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        both.cancel_scope.cancel()

    def command(self, word: str) -> None:
        if word == "hold":
            self._flowing = trio.Event()
            return
        for stream in self._live:
            if stream.socket.fileno() < 0:  # its task is about to end
                continue
            if word != "end":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()
        if word == "drop":
            self._flowing.set()


class Knife:
    """The cutter as another process."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        self._wait()

    def do(self, word: str) -> None:
        """Give a command, and wait until it is done."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{word}\n")
        self._child.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == "ok\n"


@contextlib.contextmanager
def running_cutter(host: str, port: int, target: int) -> Iterator[Knife]:
    """Relay from ``port`` to ``target`` of ``host`` until the end of the block."""
    argv = [sys.executable, "-m", __name__, host, str(port), str(target)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        try:
            yield Knife(child)
        finally:
            child.kill()


async def main(host: str, port: str, target: str) -> None:
    cutter = Cutter(host, int(target))
    commands = trio.lowlevel.FdStream(0)
    async with trio.open_nursery() as nursery:
        await nursery.start(functools.partial(trio.serve_tcp, cutter.handle, int(port), host=host))
        sys.stdout.write("ok\n")
        sys.stdout.flush()
        async for lines in commands:
            for word in lines.decode().split():
                cutter.command(word)
                sys.stdout.write("ok\n")
                sys.stdout.flush()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
