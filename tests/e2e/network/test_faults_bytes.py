"""Garbage and slow bytes on every port: each such connection ends, and no other user notices."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable

import pytest

from tests.support.net import clients
from tests.support.processes.programs import (
    AGENT_OPS_PORT,
    AGENTS_PORT,
    HTTPS_PORT,
    SERVER_OPS_PORT,
    WEB_PORT,
)
from tests.support.processes.site import Site

Dial = Callable[[Site], socket.socket]


def _tcp(port: int) -> Dial:
    return lambda site: site.server.dial(port)


ENTRANCES: dict[str, Dial] = {
    "agents": _tcp(AGENTS_PORT),
    "https": _tcp(HTTPS_PORT),
    "https-in-tls": lambda site: site.server.dial_tls(HTTPS_PORT, site.server.user_bundle),
    "web": _tcp(WEB_PORT),
    "server-ops": _tcp(SERVER_OPS_PORT),
    "agent-ops": lambda site: site.agent.dial(AGENT_OPS_PORT),
    "connect-unix": lambda site: site.server.dial_unix(site.server.connect_socket),
    "admin-unix": lambda site: site.server.dial_unix(site.server.admin_socket),
}
GARBAGE: dict[str, Callable[[], bytes]] = {
    "random": lambda: os.urandom(20_000),
    "zeroes": lambda: bytes(20_000),
    "text": lambda: b"\r\n\r\nEHLO x\r\n" * 50,
    "long-line": lambda: b"GET /" + b"a" * 100_000,
    "long-head": lambda: b"CONNECT edge1:2201 HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    "two-lengths": lambda: b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "tls-of-garbage": lambda: b"\x16\x03\x01\x40\x00" + os.urandom(20_000),
    "http2": lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(5_000),
}
# gRPC allows a handshake up to ten seconds; the server's listeners, as configured here, two.
PATIENCE_SECONDS = 15.0


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_garbage(unharmed: Site, entrance: str, long: bool) -> None:
    for make in GARBAGE.values():
        for _ in range(20 if long else 1):
            with ENTRANCES[entrance](unharmed) as connection:
                _send(connection, make())
                assert _is_ended_by_peer(connection, PATIENCE_SECONDS), "still open"


def test_slow_bytes(unharmed: Site) -> None:
    """A byte now and then keeps no place: such connections are all closed in time, on every port."""
    slow = [(entrance, dial(unharmed)) for entrance, dial in ENTRANCES.items() for _ in range(10)]
    end = time.monotonic() + PATIENCE_SECONDS
    for turn in itertools.count():
        slow = [
            (entrance, c)
            for entrance, c in slow
            if _send(c, _slow_byte(entrance, turn)) and not _has_ended(c)
        ]
        unharmed.check_request()
        if not slow or time.monotonic() > end:
            break
        time.sleep(0.3)  # how slow they are
    assert not slow, f"still open: {sorted(entrance for entrance, _ in slow)}"


def _slow_byte(entrance: str, turn: int) -> bytes:
    # The beginning of a TLS handshake that never comes to its end, or of an HTTP head.
    lines = b"\x16\x03\x01\x02\x00\x01\x00" if entrance in ("agents", "https") else b"GET / HTTP/1.1\r\nX: "
    return lines[turn : turn + 1] or b"\x00"


def test_silence(unharmed: Site) -> None:
    silent = [(entrance, dial(unharmed)) for entrance, dial in ENTRANCES.items()]
    end = time.monotonic() + PATIENCE_SECONDS
    still = [entrance for entrance, c in silent if not _is_ended_by_peer(c, max(0.1, end - time.monotonic()))]
    assert not still, f"still open: {still}"


def test_many_silent_connections_of_one_source(unharmed: Site) -> None:
    """Silent connections of one address keep its users out for a moment only, however many they are.

    A user beyond the limit waits for a place. A silent connection loses its place after handshake_seconds.
    """
    silent = [unharmed.server.dial(HTTPS_PORT) for _ in range(32)]
    assert _may_enter(unharmed)
    silent += [unharmed.server.dial(HTTPS_PORT) for _ in range(256)]
    assert _may_enter(unharmed)
    for connection in silent:
        connection.close()


def _may_enter(site: Site) -> bool:
    with site.server.connect_tls("edge1:2201") as answer:
        return answer.status == 200


def _send(connection: socket.socket, data: bytes) -> bool:
    """Whether it could be sent: the other side may already have had enough."""
    connection.settimeout(5)
    try:
        connection.sendall(data)
    except OSError:
        return False
    return True


def _has_ended(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        return not connection.recv(65536)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError as error:
        return "WANT_READ" not in str(error) and "did not complete" not in str(error)


def _is_ended_by_peer(connection: socket.socket, deadline_seconds: float) -> bool:
    """Whether the other side closes or resets within the deadline; an answer before that is fine."""
    connection.settimeout(deadline_seconds)
    try:
        clients.receive_all(connection)
    except TimeoutError:
        return False
    except OSError:
        return True
    return True
