"""Keystrokes beside bulk: echoes at a steady pace, sent whether or not the previous echo has arrived.

A load that waits for each answer before the next message would measure a stalled second only once. A person
who types notices the stall in every key of the second.

The load uses threads and plain sockets, because it measures thin links, which one Python process fills.
"""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from bench.load import ENDLESS, MESSAGE, MIB, TIMEOUT_SECONDS, Dial, LoadError, echo_once
from bench.target import COUNT

KEY_BYTES = 64
_NUMBER = struct.Struct(f"!Q{KEY_BYTES - 8}x")
_BLOCK = bytes(64 << 10)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def keystrokes(
    connect: Dial, seconds: float, interval: float = 0.1, *, timeout_seconds: float = TIMEOUT_SECONDS
) -> list[float]:
    """Return round trips (seconds) of 64-byte echoes, one every ``interval`` seconds on a new connection."""
    with connect() as sock:
        return Typist(sock, interval).type_for(seconds, timeout_seconds)


class Typist:
    """A user who types on an open echo connection, a key every ``interval`` seconds."""

    def __init__(self, sock: socket.socket, interval: float = 0.1) -> None:
        self._sock = sock
        self._interval = interval
        self._sent: list[float] = []
        self._times: list[float] = []
        self._received = b""

    def type_for(self, seconds: float, timeout_seconds: float = TIMEOUT_SECONDS) -> list[float]:
        """Type for ``seconds`` and return the round trip of every key, in seconds.

        Raises ``LoadError`` if an echo is missing after ``timeout_seconds``, or out of order.
        """
        start = time.monotonic()
        earlier = len(self._sent)
        for number in range(max(1, round(seconds / self._interval))):
            self._read_until(start + number * self._interval)
            self._press()
        end = time.monotonic() + timeout_seconds
        while len(self._times) < len(self._sent):
            if not self._read_once(end):
                missing = len(self._sent) - len(self._times)
                raise LoadError(
                    f"{missing} of {len(self._sent)} keys have no echo after {timeout_seconds:g} s"
                )
        return self._times[earlier:]

    def _press(self) -> None:
        self._sent.append(time.monotonic())
        self._sock.sendall(_NUMBER.pack(len(self._sent) - 1))

    def _read_until(self, deadline: float) -> None:
        while self._read_once(deadline):
            continue

    def _read_once(self, deadline: float) -> bool:
        """Read once; whether data arrived before the deadline."""
        readable, _, _ = select.select([self._sock], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            return False
        now = time.monotonic()
        data = self._sock.recv(65536)
        if not data:
            raise LoadError(f"the echo ended after {len(self._times)} of {len(self._sent)} keys")
        self._received += data
        while len(self._received) >= KEY_BYTES:
            (number,) = _NUMBER.unpack_from(self._received)
            if number != len(self._times):
                raise LoadError(f"key {number} came back, key {len(self._times)} was next")
            self._received = self._received[KEY_BYTES:]
            self._times.append(now - self._sent[number])
        return True


class Meter:
    """Counter of the bytes that arrive, for any number of threads."""

    def __init__(self) -> None:
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count ``count`` more bytes."""
        with self._lock:
            self._bytes += count

    @property
    def bytes(self) -> int:
        """Bytes so far."""
        return self._bytes

    def rate(self, seconds: float) -> float:
        """Return the bytes per second over the next ``seconds``. Blocks."""
        before, start = self.bytes, time.monotonic()
        time.sleep(seconds)
        return (self.bytes - before) / (time.monotonic() - start)


@contextlib.contextmanager
def opened(connect: Dial, count: int) -> Iterator[list[socket.socket]]:
    """Open ``count`` connections, before a load makes the link slow."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect()) for _ in range(count)]


@contextlib.contextmanager
def downloads(socks: Sequence[socket.socket]) -> Iterator[Meter]:
    """Run endless downloads from a ``source`` target; yield their meter. Closes ``socks`` at the end."""
    meter = Meter()
    for sock in socks:
        sock.sendall(COUNT.pack(ENDLESS))
    with _threads(socks, *(functools.partial(_receive, sock, meter) for sock in socks)):
        yield meter


@contextlib.contextmanager
def uploads(socks: Sequence[socket.socket]) -> Iterator[None]:
    """Run endless uploads. The meter of ``sink`` counts what arrives. Resets ``socks`` at the end."""
    for sock in socks:
        # Without a reset, megabytes in the kernel's buffers keep a thin link busy for many seconds.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    with _threads(socks, *(functools.partial(_send, sock) for sock in socks)):
        yield


@contextlib.contextmanager
def echoes(socks: Sequence[socket.socket], pause_seconds: float = 0.1) -> Iterator[Meter]:
    """Repeat an echo and a pause; yield the meter of the echoed bytes. Closes ``socks`` at the end."""
    meter = Meter()
    with _threads(socks, *(functools.partial(_echo, sock, meter, pause_seconds) for sock in socks)):
        yield meter


@contextlib.contextmanager
def sink(listener: socket.socket) -> Iterator[Meter]:
    """Run a target in this process that discards all data; yield its meter."""
    meter = Meter()
    with contextlib.ExitStack() as stack:

        def accept() -> None:
            with contextlib.suppress(OSError):  # the listener is closed
                while True:
                    sock, _ = listener.accept()
                    stack.enter_context(_threads([sock], functools.partial(_discard, sock, meter)))

        stack.enter_context(_threads([listener], accept))
        yield meter


@contextlib.contextmanager
def foreign_flow(sender: socket.socket, receiver: socket.socket) -> Iterator[Meter]:
    """Run bulk over a connection outside the tunnel, like another program at the edge; yield its meter."""
    meter = Meter()
    with _threads(
        [sender, receiver], functools.partial(_send, sender), functools.partial(_receive, receiver, meter)
    ):
        yield meter


@contextlib.contextmanager
def _threads(socks: Sequence[socket.socket], *functions: Callable[[], None]) -> Iterator[None]:
    """Run each function in a thread. The end of the block closes ``socks``, which ends the threads."""
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for sock in socks:
            _close(sock)
        for thread in threads:
            thread.join(TIMEOUT_SECONDS)


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the connection may have ended already
        sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for the socket; close does not
    sock.close()


def _discard(sock: socket.socket, meter: Meter) -> None:
    """Discard all data, then close, so that no stream stays half-open."""
    with sock:
        _receive(sock, meter)


def _receive(sock: socket.socket, meter: Meter) -> None:
    buffer = bytearray(MIB)
    with contextlib.suppress(OSError):
        while count := sock.recv_into(buffer):
            meter.add(count)


def _echo(sock: socket.socket, meter: Meter, pause_seconds: float) -> None:
    with contextlib.suppress(OSError, LoadError):  # the socket is closed
        while True:
            echo_once(sock)
            meter.add(len(MESSAGE))
            time.sleep(pause_seconds)


def _send(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock.send(_BLOCK)
