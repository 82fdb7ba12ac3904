"""Standard input and output as one stream: pipes, sockets, files or terminals.

1. Only pipes and sockets are polled, because epoll refuses regular files and /dev/null, and kqueue refuses
   some terminals. Other inputs and outputs are read and written in threads.
2. The end of the stream must close the last descriptor of the output, so that ssh sees the end. So the two
   descriptors are moved, and /dev/null replaces them as 0 and 1. Otherwise a later socket could get the
   number 1, and a stray print would write to it.
3. A terminal has no end of input by itself. So its input ends when the far side ends. Otherwise the user
   would wait at a dead prompt.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator

import trio

from tunnel_core.runtime.ending import is_hung_up
from tunnel_core.streams.sockets import SocketStream

_READ_BYTES = 64 * 1024


def take_stdio() -> trio.abc.HalfCloseableStream:
    """Return a stream of descriptors 0 and 1, and replace both with /dev/null for the rest of the program."""
    return join_descriptors(_take(0), _take(1))


def _take(descriptor: int) -> int:
    taken = os.dup(descriptor)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)
    return taken


def join_descriptors(reading: int, writing: int) -> trio.abc.HalfCloseableStream:
    """Return a stream that receives from ``reading`` and sends to ``writing``. The stream owns both."""
    if _kind(reading) == _kind(writing) == stat.S_IFSOCK and os.path.sameopenfile(reading, writing):
        os.close(writing)
        return SocketStream(socket.socket(fileno=reading))
    return StdioStream(_source(reading), _sink(writing), writing)


def _source(descriptor: int) -> trio.abc.ReceiveStream:
    return trio.lowlevel.FdStream(descriptor) if _can_poll(descriptor) else ThreadedReader(descriptor)


def _sink(descriptor: int) -> trio.abc.SendStream:
    return trio.lowlevel.FdStream(descriptor) if _can_poll(descriptor) else ThreadedWriter(descriptor)


def _can_poll(descriptor: int) -> bool:
    return _kind(descriptor) in (stat.S_IFIFO, stat.S_IFSOCK)


def _kind(descriptor: int) -> int:
    return stat.S_IFMT(os.fstat(descriptor).st_mode)


class ThreadedReader(trio.abc.ReceiveStream):
    """Read a descriptor that cannot be polled.

    After cancellation a read continues in its thread, and its bytes are lost. So cancel only to end.
    """

    def __init__(self, descriptor: int) -> None:
        self.is_terminal = os.isatty(descriptor)
        self._descriptor = descriptor
        self._scope = trio.CancelScope()
        self._ended = False
        self._reading = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._descriptor < 0:
            raise trio.ClosedResourceError("this input was closed here")
        size = min(max_bytes or _READ_BYTES, _READ_BYTES)
        with trio.CancelScope() as self._scope:
            if self._ended:
                return b""
            try:
                return await trio.to_thread.run_sync(self._read, size, abandon_on_cancel=True)
            except OSError as error:
                raise trio.BrokenResourceError(f"standard input: {error.strerror}") from error
        return b""

    def _read(self, size: int) -> bytes:
        self._reading = True
        try:
            return os.read(self._descriptor, size)
        finally:
            self._reading = False

    def end(self) -> None:
        """End the input, also for a waiting ``receive_some``."""
        self._ended = True
        self._scope.cancel()

    async def aclose(self) -> None:
        # While a thread waits in read(), a close would let another file get the descriptor's number.
        if not self._reading:
            _close(self._descriptor)
        self._descriptor = -1
        await trio.lowlevel.checkpoint()


class ThreadedWriter(trio.abc.SendStream):
    """Write a descriptor that cannot be polled."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._descriptor < 0:
            raise trio.ClosedResourceError("this output was closed here")
        try:
            await trio.to_thread.run_sync(_write_all, self._descriptor, data, abandon_on_cancel=True)
        except OSError as error:
            raise trio.BrokenResourceError(f"standard output: {error.strerror}") from error

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        _close(self._descriptor)
        self._descriptor = -1
        await trio.lowlevel.checkpoint()


class StdioStream(trio.abc.HalfCloseableStream):
    """Join an input and an output. ``send_eof`` closes the output, whose descriptor is ``writing``."""

    def __init__(self, source: trio.abc.ReceiveStream, sink: trio.abc.SendStream, writing: int) -> None:
        self._source = source
        self._sink = sink
        self._writing = writing
        self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._source.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._exclusive_send():
            await self._sink.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        with self._exclusive_send():
            await self._sink.wait_send_all_might_not_block()

    def check_peer(self) -> None:
        """Raise ``trio.BrokenResourceError`` if the output has no reader any more."""
        if is_hung_up(self._writing):
            raise trio.BrokenResourceError("nothing reads standard output any more")

    def probe_peer_every(self, seconds: float) -> None:
        """Do nothing, because a pipe or terminal reports a lost reader without probes."""

    async def send_eof(self) -> None:
        with self._exclusive_send():
            self._writing = -1
            await self._sink.aclose()
        if isinstance(self._source, ThreadedReader) and self._source.is_terminal:
            self._source.end()

    @contextlib.contextmanager
    def _exclusive_send(self) -> Iterator[None]:
        if self._sending:
            raise trio.BusyResourceError("another task is sending to this output")
        self._sending = True
        try:
            yield
        finally:
            self._sending = False

    async def aclose(self) -> None:
        self._writing = -1
        try:
            await self._sink.aclose()
        finally:
            await self._source.aclose()


def _write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
