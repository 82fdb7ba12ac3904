"""A socket as a ``HalfCloseableStream`` that ``relay`` can drive without a checkpoint per piece.

trio's own SocketStream takes a full pass of the scheduler for each send and each receive, even when the
kernel answers at once. On a relay that is most of the time spent. This stream calls the kernel first, and
waits through trio only after "would block".
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import operator
import os
import select
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from typing import NoReturn

import trio

from tunnel_core.limits import KIB, MIB
from tunnel_core.streams.nowait import NowaitStream, PeerStoppedReceiving
from tunnel_core.streams.readiness import IS_SUPPORTED, Readiness, readiness_of_this_run
from tunnel_core.wire.frames import Payload

_RECEIVE = 64 * 1024
_CLOSED_ERRNOS = {errno.EBADF, errno.ENOTSOCK}
_BACKLOG_PAUSE_SECONDS = 0.05
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST
_END_ON_CLOSE = bytes(len(RESET_ON_CLOSE))

KEEPALIVE_SECONDS = 60
"""Time without traffic before the kernel's first keepalive probe."""
# After a silent minute the kernel sends four probes, so a lost peer is gone after two minutes. macOS has
# another name for the first option.
_KEEPALIVE = [
    (getattr(socket, name), value)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_SECONDS),
        ("TCP_KEEPALIVE", KEEPALIVE_SECONDS),
        ("TCP_KEEPINTVL", 15),
        ("TCP_KEEPCNT", 4),
    )
    if hasattr(socket, name)
]
_KEEPALIVE_IDLE = _KEEPALIVE[0][0]
_NOTHING = memoryview(b"")
UNSENT_BYTES = 128 * KIB
"""Bytes that the kernel accepts for a user or a target beyond those on their way. By default it accepts 4 MiB
for a peer that reads nothing. The stream would count them as read, and grant its sender more credit."""
_UNSENT_OPTION = getattr(socket, "TCP_NOTSENT_LOWAT", None)


def read_size(max_bytes: int | None) -> int:
    """Return the bytes that one ``receive_some`` may return.

    Raises ``ValueError`` and ``TypeError`` as trio does.
    """
    if max_bytes is None:
        return _RECEIVE
    if operator.index(max_bytes) < 1:
        raise ValueError("max_bytes must be at least 1")
    return max_bytes


def tune(sock: socket.socket, *, is_remote: bool = True, is_carrier: bool = False) -> None:
    """Set the options of a socket or listener. On Linux accepted sockets inherit those of their listener.

    ``is_remote``: the peer may be on another machine, and vanish with it. ``is_carrier``: the socket carries
    sessions, which bound what the kernel holds by themselves.
    """
    if sock.family == socket.AF_UNIX:
        return
    # Small messages would wait for the peer's delayed ACK: a flat 40 ms.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The kernel closes the sockets of a killed process, by default with the FIN of a complete stream.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    if _UNSENT_OPTION is not None and not is_carrier:
        sock.setsockopt(socket.IPPROTO_TCP, _UNSENT_OPTION, UNSENT_BYTES)
    if not is_remote:
        return
    # A peer that lost its power sends nothing, and its stream would stay for ever.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


class SocketStream(NowaitStream):
    """A stream that owns a connected stream socket (TCP or unix).

    Its methods raise ``trio.BrokenResourceError`` from the ``OSError`` when the connection broke, and
    ``trio.ClosedResourceError`` after a close here. A cancelled receive loses nothing.
    """

    def __init__(self, sock: socket.socket, *, is_tuned: bool = False) -> None:
        """Wrap ``sock``. ``is_tuned``: :func:`tune` was called on it or on its listener."""
        sock.setblocking(False)
        if not is_tuned:
            tune(sock)
        self.socket = sock
        self._sending = False
        self._receiving = False
        self._ended = False
        self._readiness: Readiness | None = None  # while it is watched
        self._needs_notice = False  # trio has waited for it
        self._unsent = _NOTHING  # of the last ``send_nowait``

    @classmethod
    def adopt(cls, stream: trio.SocketStream) -> SocketStream:
        """Take the socket over from a trio stream, which must not be used any more."""
        return cls(socket.socket(fileno=stream.socket.detach()))

    # Receiving.

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """Return the kernel's bytes, ``b""`` at the end, None if it has none yet."""
        try:
            return self.socket.recv(max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _translated(error) from error

    def receive_into_nowait(self, view: memoryview) -> int | None:
        """Like ``receive_nowait``, but write the bytes to the start of ``view``, and return their number."""
        try:
            return self.socket.recv_into(view)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _translated(error) from error

    async def wait_readable(self) -> None:
        """Wait until ``receive_nowait`` has an answer."""
        if self.socket.fileno() < 0:
            self._raise_closed()
        self._needs_notice = True
        await trio.lowlevel.wait_readable(self.socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if type(max_bytes) is not int or max_bytes < 1:
            max_bytes = read_size(max_bytes)
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this socket")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while (data := self.receive_nowait(max_bytes)) is None:
                self._needs_notice = True
                await trio.lowlevel.wait_readable(self.socket)
            return data
        finally:
            self._receiving = False

    def watch(self, function: Callable[[], None] | None) -> bool:
        """Call ``function`` whenever ``receive_nowait`` may have an answer. None ends that.

        Return False where the system has no epoll or refuses it, for example without a descriptor left. The
        stream's close ends the watch too.
        """
        if self._readiness is not None:
            self._readiness.unwatch(self.socket.fileno())
            self._readiness = None
        if function is None or not IS_SUPPORTED:
            return False
        self._check_open()
        try:
            readiness = readiness_of_this_run()
            readiness.watch(self.socket.fileno(), function)
        except OSError:
            return False
        self._readiness = readiness
        return True

    # Sending.

    def try_send(self, data: Payload) -> int:
        """Send the start of ``data``. Return how many bytes the kernel accepted, which may be 0."""
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _translated(error) from error

    async def wait_writable(self) -> None:
        """Wait until ``try_send`` accepts bytes."""
        self._check_open()
        self._needs_notice = True
        await trio.lowlevel.wait_writable(self.socket)

    @property
    def room(self) -> int:
        """A constant, because the kernel bounds its own buffer."""
        return MIB

    def send_nowait(self, data: Payload) -> bool:
        if self._unsent:
            raise trio.BusyResourceError("the last send was not flushed")
        sent = self.try_send(data)
        if sent == len(data):
            return True
        self._unsent = memoryview(data)[sent:]
        return False

    async def flush(self) -> None:
        while self._unsent:
            await self.wait_writable()
            self._unsent = self._unsent[self.try_send(self._unsent) :]

    async def send_all(self, data: Payload) -> None:
        if self._sending:
            self._raise_busy()
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            if self._ended or self.socket.fileno() < 0:
                self._check_sendable()
            try:
                if not self.send_nowait(data):
                    await self.flush()
            finally:
                self._unsent = _NOTHING
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending_exclusively():
            self._check_sendable()
            await self.wait_writable()

    @contextlib.contextmanager
    def _sending_exclusively(self) -> Iterator[None]:
        if self._sending:
            self._raise_busy()
        self._sending = True
        try:
            yield
        finally:
            self._sending = False

    def _raise_busy(self) -> NoReturn:
        raise trio.BusyResourceError("another task is sending on this socket")

    def _check_sendable(self) -> None:
        if self.socket.fileno() < 0:
            self._raise_closed()
        if self._ended:
            raise trio.ClosedResourceError("this socket's sending half was ended here")

    async def send_eof(self) -> None:
        with self._sending_exclusively():
            await trio.lowlevel.checkpoint()
            self.send_eof_nowait()

    def check(self) -> None:
        """Raise ``trio.BrokenResourceError`` if the peer reset the connection, even while data waits."""
        self._check_open()
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise trio.BrokenResourceError(f"socket connection broken: {os.strerror(number)}")

    def check_peer(self) -> None:
        """Raise ``trio.BrokenResourceError`` if the peer reset the connection, or closed a unix socket.

        A TCP peer that closed without a reset cannot be told from one that ended its half.
        """
        self._check_open()
        poller = select.poll()
        poller.register(self.socket, 0)
        if any(event & (select.POLLHUP | select.POLLERR) for _, event in poller.poll(0)):
            raise trio.BrokenResourceError("socket connection broken: the other side is gone")

    def probe_peer_every(self, seconds: float) -> None:
        """Have the kernel send a keepalive probe after each ``seconds`` without traffic.

        No effect on unix.
        """
        self._check_open()
        with contextlib.suppress(OSError):  # the connection broke meanwhile, or is not TCP
            self.socket.setsockopt(socket.IPPROTO_TCP, _KEEPALIVE_IDLE, max(1, round(seconds)))
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    @property
    def undelivered(self) -> int:
        """Bytes that were sent and not acknowledged; 0 where the system does not report them."""
        if sys.platform != "linux" or self.socket.fileno() < 0:
            return 0
        with contextlib.suppress(OSError):
            [count] = struct.unpack("i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)))
            return int(count) + len(self._unsent)
        return 0

    def send_eof_nowait(self) -> bool:
        if self.socket.fileno() < 0:
            self._raise_closed()
        if not self._ended:
            self._ended = True
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                raise self._shutdown_error(error) from error
        return True

    def _shutdown_error(self, error: OSError) -> Exception:
        """Return the socket's pending error as the cause, because a broken socket is just not connected."""
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return _translated(OSError(number, os.strerror(number)) if number else error)

    def _check_open(self) -> None:
        # trio would keep a waiter for descriptor -1 for ever, and report the next one as busy.
        if self.socket.fileno() < 0:
            self._raise_closed()

    def _raise_closed(self) -> NoReturn:
        raise trio.ClosedResourceError("this socket was closed here")

    # Ending.

    def abort(self) -> None:
        """Close so that the peer sees a reset, not an end. Truncated output must not look complete."""
        self._close(RESET_ON_CLOSE)

    def close_nowait(self) -> None:
        """Close without a checkpoint. The kernel still delivers sent bytes, then the end. Idempotent.

        A TCP connection that ends in any other way is reset, also when its process is killed (``tune``). A
        unix socket has no reset: its peer sees an end.
        """
        self._close(_END_ON_CLOSE)

    def _close(self, linger: bytes) -> None:
        if self.socket.fileno() < 0:
            return
        if self._readiness is not None:
            self.watch(None)
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if self._needs_notice:
            trio.lowlevel.notify_closing(self.socket)
        self.socket.close()

    async def aclose(self) -> None:
        self.close_nowait()
        await trio.lowlevel.checkpoint()


async def connect_unix(path: str | bytes | os.PathLike[str]) -> SocketStream:
    """Connect to a unix socket, and wait while its backlog is full. Raises ``OSError``.

    trio's own ``open_unix_socket`` treats the EAGAIN of a full backlog (connect(2)) as a connection in
    progress, and returns a socket that is not connected. Cancellation leaves no socket behind.
    """
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            number = sock.connect_ex(os.fspath(path))
            if not number:
                await trio.lowlevel.checkpoint()
                return SocketStream(sock)
        except BaseException:
            sock.close()
            raise
        sock.close()
        if number != errno.EAGAIN:
            raise OSError(number, os.strerror(number))
        await trio.sleep(_BACKLOG_PAUSE_SECONDS)


def _translated(error: OSError) -> Exception:
    if error.errno in _CLOSED_ERRNOS:
        return trio.ClosedResourceError("this socket was closed here")
    if error.errno == errno.EPIPE and sys.platform == "linux":
        # Linux returns EPIPE when the reset came after the end of the peer's half, else ECONNRESET.
        return PeerStoppedReceiving(f"socket connection broken: {error}")
    return trio.BrokenResourceError(f"socket connection broken: {error}")


def why_not_listening(error: OSError, port: int) -> str:
    """Return why a TCP port cannot be listened on, with the remedy."""
    if error.errno == errno.EADDRINUSE:
        return f"another program listens there; `ss -ltnp 'sport = :{port}'` shows which"
    if error.errno == errno.EACCES:
        return "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address"
    return error.strerror or str(error)
