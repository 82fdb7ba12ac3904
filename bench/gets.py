"""Small GETs on keep-alive connections, each with one request in flight."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import time
from collections.abc import Callable, Iterator

from bench.load import TIMEOUT_SECONDS, Dial, LoadError
from bench.target import PAGE_END

_READ_BYTES = 4096


def get_once(sock: socket.socket, request: bytes) -> None:
    """Send a request and read its answer. Raises `LoadError`."""
    sock.sendall(request)
    _read_answer(sock)


def _read_answer(sock: socket.socket) -> None:
    answer = sock.recv(_READ_BYTES)
    while not answer.endswith(PAGE_END):
        piece = sock.recv(_READ_BYTES)
        if not piece:
            raise LoadError(f"the answer of a GET ended early: {answer[:80]!r}")
        answer += piece
    if not answer.startswith(b"HTTP/1.1 200"):
        raise LoadError(f"a GET was answered with {answer[:80]!r}")


@contextlib.contextmanager
def getting(connect: Dial, request: bytes, connections: int) -> Iterator[Callable[[float], float]]:
    """Open `connections`. Yield a function that has them GET for so many seconds and returns the rate."""
    with contextlib.ExitStack() as stack, select.epoll() as poll:
        socks = [stack.enter_context(connect()) for _ in range(connections)]
        for sock in socks:
            get_once(sock, request)
            poll.register(sock, select.EPOLLIN)
        by_descriptor = {sock.fileno(): sock for sock in socks}
        for sock in socks:
            sock.sendall(request)
        yield functools.partial(_get_for, poll, by_descriptor, request)


def _get_for(poll: select.epoll, socks: dict[int, socket.socket], request: bytes, seconds: float) -> float:
    started = time.perf_counter()
    end = started + seconds
    count = 0
    while (now := time.perf_counter()) < end:
        events = poll.poll(TIMEOUT_SECONDS)
        if not events:
            raise LoadError("GETs stand still")
        for descriptor, _ in events:
            sock = socks[descriptor]
            _read_answer(sock)
            sock.send(request)
            count += 1
    return count / (now - started)
