"""What a person feels: echoes sent at a steady pace, whether or not the last one came back, beside bulk.

A load that waits for each answer before it sends the next would measure a stalled second once; a person
who types feels it in every key of that second.

Threads of plain sockets: what is measured here is a thin link, which one Python process fills easily.
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

from bench.load import ENDLESS, MESSAGE, MIB, PATIENCE_SECONDS, Dial, LoadError, echo_once
from bench.target import COUNT

KEY_BYTES = 64
_NUMBER = struct.Struct(f"!Q{KEY_BYTES - 8}x")
_BLOCK = bytes(64 << 10)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def keystrokes(
    connect: Dial, seconds: float, interval: float = 0.1, *, patience_seconds: float = PATIENCE_SECONDS
) -> list[float]:
    """Round trips of 64-byte echoes, one begun each ``interval`` on a new connection, in their order."""
    with connect() as sock:
        return Typist(sock, interval).type_for(seconds, patience_seconds)


class Typist:
    """One who types on an open echo connection."""

    def __init__(self, sock: socket.socket, interval: float = 0.1) -> None:
        self._sock = sock
        self._interval = interval
        self._sent: list[float] = []
        self._times: list[float] = []
        self._received = b""

    def type_for(self, seconds: float, patience_seconds: float = PATIENCE_SECONDS) -> list[float]:
        """The time of every key begun now. Raises ``LoadError`` if an echo is missing or another's."""
        start = time.monotonic()
        already = len(self._sent)
        for number in range(max(1, round(seconds / self._interval))):
            self._read_until(start + number * self._interval)
            self._press()
        end = time.monotonic() + patience_seconds
        while len(self._times) < len(self._sent):
            if not self._read_once(end):
                missing = len(self._sent) - len(self._times)
                raise LoadError(
                    f"{missing} of {len(self._sent)} keys have no echo after {patience_seconds:g} s"
                )
        return self._times[already:]

    def _press(self) -> None:
        self._sent.append(time.monotonic())
        self._sock.sendall(_NUMBER.pack(len(self._sent) - 1))

    def _read_until(self, moment: float) -> None:
        while self._read_once(moment):
            continue

    def _read_once(self, deadline: float) -> bool:
        """Whether there was something to read before the deadline."""
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
    """Counts what arrives, wherever it is counted."""

    def __init__(self) -> None:
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._bytes += count

    @property
    def bytes(self) -> int:
        return self._bytes

    def rate(self, seconds: float) -> float:
        """Bytes per second over the next ``seconds``."""
        before, start = self.bytes, time.monotonic()
        time.sleep(seconds)
        return (self.bytes - before) / (time.monotonic() - start)


@contextlib.contextmanager
def opened(connect: Dial, count: int) -> Iterator[list[socket.socket]]:
    """``count`` connections, before anything makes the link slow."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect()) for _ in range(count)]


@contextlib.contextmanager
def downloads(socks: Sequence[socket.socket]) -> Iterator[Meter]:
    """Endless downloads from a ``source`` target; yields the meter of what came. Closes its sockets."""
    meter = Meter()
    for sock in socks:
        sock.sendall(COUNT.pack(ENDLESS))
    with _busy(socks, *(functools.partial(_receive, sock, meter) for sock in socks)):
        yield meter


@contextlib.contextmanager
def uploads(socks: Sequence[socket.socket]) -> Iterator[None]:
    """Endless uploads; only their target knows what has arrived: ``sink`` counts it. Resets its sockets."""
    for sock in socks:
        # Else the megabytes that the kernel took in would keep a thin link busy for many seconds more.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    with _busy(socks, *(functools.partial(_send, sock) for sock in socks)):
        yield


@contextlib.contextmanager
def echoes(socks: Sequence[socket.socket], pause_seconds: float = 0.1) -> Iterator[Meter]:
    """A message there and back, then a pause, for ever; yields the meter of what came back. Closes them."""
    meter = Meter()
    with _busy(socks, *(functools.partial(_echo, sock, meter, pause_seconds) for sock in socks)):
        yield meter


@contextlib.contextmanager
def sink(listener: socket.socket) -> Iterator[Meter]:
    """A target in this process, which throws away what comes; its meter may be read at any time."""
    meter = Meter()
    with contextlib.ExitStack() as stack:

        def accept() -> None:
            with contextlib.suppress(OSError):  # its end
                while True:
                    sock, _ = listener.accept()
                    stack.enter_context(_busy([sock], functools.partial(_take_in, sock, meter)))

        stack.enter_context(_busy([listener], accept))
        yield meter


@contextlib.contextmanager
def foreign_flow(sender: socket.socket, receiver: socket.socket) -> Iterator[Meter]:
    """Bulk over a connection outside the tunnel, such as any other program at the edge has."""
    meter = Meter()
    with _busy(
        [sender, receiver], functools.partial(_send, sender), functools.partial(_receive, receiver, meter)
    ):
        yield meter


@contextlib.contextmanager
def _busy(socks: Sequence[socket.socket], *works: Callable[[], None]) -> Iterator[None]:
    """Each work in a thread; they end because at the end their sockets do."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for sock in socks:
            _end(sock)
        for thread in threads:
            thread.join(PATIENCE_SECONDS)


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may have ended by itself
        sock.shutdown(socket.SHUT_RDWR)  # wakes whoever waits in it, which close does not
    sock.close()


def _take_in(sock: socket.socket, meter: Meter) -> None:
    """As a target does: its half ends with the sender's, so that no stream is left half-open."""
    with sock:
        _receive(sock, meter)


def _receive(sock: socket.socket, meter: Meter) -> None:
    buffer = bytearray(MIB)
    with contextlib.suppress(OSError):
        while count := sock.recv_into(buffer):
            meter.add(count)


def _echo(sock: socket.socket, meter: Meter, pause_seconds: float) -> None:
    with contextlib.suppress(OSError, LoadError):  # its end
        while True:
            echo_once(sock)
            meter.add(len(MESSAGE))
            time.sleep(pause_seconds)


def _send(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock.send(_BLOCK)
