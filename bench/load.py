"""Load of the bench: raw sockets in blocking calls or one epoll loop, in the bench's own process.

Plain Python is enough. Direct on loopback it moves several GiB/s and more than 100,000 echoes/s, ten times
the rate of any tunnel here. A C program would need a compiler on the user's machine. Every run has the row
`direct`, so the head-room is measured.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

from bench.places import HERE, Place
from bench.target import COUNT


class Dial(Protocol):
    """Function that connects to one target through one system. Its socket blocks for 60 s at most."""

    def __call__(self, *, receive_bytes: int = 0) -> socket.socket:
        """Connect. `receive_bytes` is the kernel's receive buffer, for a reader that does not read."""


MIB = 1 << 20
MESSAGE = b"q" * 64
TIMEOUT_SECONDS = 60
_TIMEOUT = struct.pack("ll", TIMEOUT_SECONDS, 0)
ENDLESS = 1 << 50
_STALLED_BYTES = 4 << 10
_READER_BYTES = 256 << 10
_BUFFER = bytearray(MIB)


Reader: TypeAlias = Callable[[socket.socket], None]


class LoadError(Exception):
    """The system under test lost data or stood still."""


def dial(host: str, port: int, receive_bytes: int = 0) -> socket.socket:
    """Connect. The kernel keeps the timeouts, because Python's own cost a `poll` for each call."""
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        # With loopback's segments of 64 KiB the sender's kernel holds megabytes for each reader.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _connected(sock, (host, port))


def dial_unix(path: str, receive_bytes: int = 0) -> socket.socket:
    """Connect to a unix socket, with the deadlines of `dial`."""
    sock = socket.socket(socket.AF_UNIX)
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    return _connected(sock, path)


def _connected(sock: socket.socket, address: tuple[str, int] | str) -> socket.socket:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEOUT)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def dialler(host: str, port: int, place: Place = HERE) -> Dial:
    """Return a function that connects to the port from `place`."""

    def connect(*, receive_bytes: int = 0) -> socket.socket:
        with place.entered():
            return dial(host, port, receive_bytes)

    return connect


# ------------------------------------------------------------------------------------------ bulk


def download_rate(connect: Dial, streams: int, size: int) -> float:
    """Return the MiB/s of `streams` downloads of `size` bytes together, while all of them run.

    The clock starts when each stream has its first byte and stops when the first one ends. So neither the
    opening nor a slow last stream counts.
    """
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect()) for _ in range(streams)]
        for sock in socks:
            sock.sendall(COUNT.pack(size))
        for sock in socks:
            if not sock.recv_into(_BUFFER, 1):
                raise LoadError("a download ended before its first byte")
        started = time.perf_counter()
        received = _receive_until_one_ends(socks)
        return received / MIB / (time.perf_counter() - started)


def _receive_until_one_ends(socks: list[socket.socket]) -> int:
    if len(socks) == 1:
        return _receive_all(socks[0])
    total = 0
    with select.epoll() as poll:
        by_descriptor = {sock.fileno(): sock for sock in socks}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.EPOLLIN)
        while True:
            events = poll.poll(TIMEOUT_SECONDS)
            if not events:
                raise LoadError("downloads stand still")
            for descriptor, _ in events:
                received = _receive(by_descriptor[descriptor])
                if not received:
                    return total
                total += received


def _receive_all(sock: socket.socket) -> int:
    total = 0
    while received := _receive(sock):
        total += received
    return total


def _receive(sock: socket.socket) -> int:
    """Count received bytes. The kernel drops plain TCP data, because a copy would take the tunnel's cores."""
    if isinstance(sock, ssl.SSLSocket):
        return sock.recv_into(_BUFFER)
    return sock.recv_into(_BUFFER, 0, socket.MSG_TRUNC)


def upload_rate(connect: Dial, size: int) -> float:
    """Return the MiB/s of one upload, from its first byte to the target's count of all."""
    with connect() as sock, open(os.memfd_create("block"), "rb") as block:  # noqa: PTH123 - no path
        os.truncate(block.fileno(), MIB)
        started = time.perf_counter()
        left = size
        while left:
            left -= os.sendfile(sock.fileno(), block.fileno(), 0, min(left, MIB))
        sock.shutdown(socket.SHUT_WR)
        counted = _receive_exactly(sock, COUNT.size)
        elapsed = time.perf_counter() - started
    if COUNT.unpack(counted)[0] != size:
        raise LoadError("an upload lost bytes")
    return size / MIB / elapsed


def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise LoadError(f"the connection ended after {len(data)} of {size} bytes")
        data += piece
    return data


# ---------------------------------------------------------------------------------------- echoes


def echo_once(sock: socket.socket) -> None:
    """Send 64 bytes and wait for their echo. Raises `LoadError`."""
    sock.sendall(MESSAGE)
    _receive_exactly(sock, len(MESSAGE))


def echo_seconds(connect: Dial, count: int) -> list[float]:
    """Return the round trips (seconds) of `count` echoes of 64 bytes, in turn on one connection."""
    with connect() as sock:
        for _ in range(max(20, count // 20)):
            echo_once(sock)
        return [_timed(echo_once, sock) for _ in range(count)]


def _timed(call: Callable[[socket.socket], None], sock: socket.socket) -> float:
    started = time.perf_counter()
    call(sock)
    return time.perf_counter() - started


def echo_rate(connect: Dial, connections: int, seconds: float) -> float:
    """Return the echoes per second of `connections` that each have one echo in flight."""
    with echoing(connect, connections) as run:
        run(seconds / 10)
        return run(seconds)


@contextlib.contextmanager
def echoing(connect: Dial, connections: int) -> Iterator[Callable[[float], float]]:
    """Open `connections`. Yield a function that has them echo for so many seconds and returns the rate."""
    with contextlib.ExitStack() as stack, select.epoll() as poll:
        socks = [stack.enter_context(connect()) for _ in range(connections)]
        for sock in socks:
            echo_once(sock)
            poll.register(sock, select.EPOLLIN)
        by_descriptor = {sock.fileno(): sock for sock in socks}
        for sock in socks:
            sock.sendall(MESSAGE)
        yield functools.partial(_echo_for, poll, by_descriptor)


def _echo_for(poll: select.epoll, socks: dict[int, socket.socket], seconds: float) -> float:
    started = time.perf_counter()
    end = started + seconds
    count = 0
    while (now := time.perf_counter()) < end:
        events = poll.poll(TIMEOUT_SECONDS)
        if not events:
            raise LoadError("echoes stand still")
        for descriptor, _ in events:
            sock = socks[descriptor]
            received = len(sock.recv(len(MESSAGE)))
            if not received:
                raise LoadError("an echo did not come back")
            _receive_exactly(sock, len(MESSAGE) - received)  # a packet of the tunnel may end inside it
            sock.send(MESSAGE)
            count += 1
    return count / (now - started)


# ----------------------------------------------------------------------------------- connections


def connect_seconds(connect: Dial, count: int) -> list[float]:
    """Return the seconds from the start of a new connection to its first echo, `count` times."""
    return [_connect_and_echo(connect) for _ in range(count)]


def _connect_and_echo(connect: Dial) -> float:
    started = time.perf_counter()
    with connect() as sock:
        echo_once(sock)
        return time.perf_counter() - started


def connect_rate(connect: Dial, slots: int, seconds: float, read_answer: Reader | None = None) -> float:
    """Return the new connections per second, each with one echo and then closed, `slots` at once.

    `connect` may return before the tunnel has answered; `read_answer` then reads the answer.
    """
    with select.epoll() as poll:
        socks: dict[int, socket.socket] = {}
        for _ in range(slots):
            _begin(connect, poll, socks)
        started = time.perf_counter()
        end = started + seconds
        count = 0
        while (now := time.perf_counter()) < end:
            events = poll.poll(TIMEOUT_SECONDS)
            if not events:
                raise LoadError("new connections stand still")
            for descriptor, _ in events:
                _finish(socks.pop(descriptor), read_answer)
                _begin(connect, poll, socks)
                count += 1
        for sock in socks.values():
            _finish(sock, read_answer)
    return count / (now - started)


def _begin(connect: Dial, poll: select.epoll, socks: dict[int, socket.socket]) -> None:
    sock = connect()
    sock.sendall(MESSAGE)
    socks[sock.fileno()] = sock
    poll.register(sock, select.EPOLLIN)


def _finish(sock: socket.socket, read_answer: Reader | None) -> None:
    with sock:
        if read_answer is not None:
            read_answer(sock)
        _receive_exactly(sock, len(MESSAGE))


# ------------------------------------------------------------------ idle and stalled connections


@contextlib.contextmanager
def idle_streams(connect: Dial, count: int) -> Iterator[None]:
    """Open `count` connections that echo once and then stay idle."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            echo_once(stack.enter_context(connect()))
        yield


@contextlib.contextmanager
def stalled_streams(connect: Dial, count: int, read_first: int = 0) -> Iterator[None]:
    """Open `count` endless downloads whose reader stops after `read_first` bytes.

    The kernel buffers are small, because large ones would accept megabytes for each download. The
    close at the end resets the connections, because the buffers still have data.
    """
    receive_bytes = _READER_BYTES if read_first else _STALLED_BYTES
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(receive_bytes=receive_bytes)) for _ in range(count)]
        for sock in socks:
            sock.sendall(COUNT.pack(ENDLESS))
        for sock in socks:
            left = read_first
            while left > 0:
                left -= sock.recv_into(_BUFFER, min(left, len(_BUFFER))) or left
        yield
