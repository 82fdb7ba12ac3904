"""Find, reset and throttle the sockets of gRPC's connections, which gRPC does not expose.

Each dial has its own TCP_USER_TIMEOUT, which marks its sockets. Without /proc no socket is found.

gRPC closes a connection only when its pending write is done. On a dead path that takes until TCP gives up. On
a slow path an abandoned connection goes on competing with the new one. So this module resets an abandoned
connection, which discards its send queue. If its socket is not found, only TCP's own time-out ends it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from typing import Any

THROTTLED_BYTES_PER_SECOND = 16_000
"""Rate of a late carrier while another attempt is under way: a sixteenth of the thinnest link that is
supported. The carrier stays alive, and its queue does not stop the attempt."""
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)
_SO_MAX_PACING_RATE = 47  # Linux; Python has no name for it
_UNPACED = 0xFFFFFFFF
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


def dialled_sockets(user_timeout_ms: int) -> Iterator[socket.socket]:
    """Yield a duplicate of each socket that has this TCP_USER_TIMEOUT, and close it afterwards."""
    if _USER_TIMEOUT is not None:
        for descriptor in _descriptors():
            with _duplicate(descriptor) as sock, contextlib.suppress(OSError):  # not TCP, or closed meanwhile
                if sock and sock.getsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT) == user_timeout_ms:
                    yield sock


def has_lost_address(user_timeout_ms: int) -> bool:
    """Whether a socket of this dial sends from an address that this machine has lost."""
    return any(_is_gone(sock.family, sock.getsockname()) for sock in dialled_sockets(user_timeout_ms))


def throttle(user_timeout_ms: int, *, enabled: bool) -> None:
    """Limit the sockets of this dial to ``THROTTLED_BYTES_PER_SECOND``, or lift that limit."""
    rate = struct.pack("I", THROTTLED_BYTES_PER_SECOND if enabled else _UNPACED)
    for sock in dialled_sockets(user_timeout_ms):
        with contextlib.suppress(OSError):  # closed meanwhile
            sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate)


def reset_dialled(user_timeout_ms: int) -> None:
    """Reset the sockets of this dial. gRPC's close, which follows, then discards their queues."""
    for sock in dialled_sockets(user_timeout_ms):
        with contextlib.suppress(OSError):  # closed meanwhile
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            sock.shutdown(socket.SHUT_RDWR)


def _is_gone(family: int, address: tuple[Any, ...]) -> bool:
    host, _, *scope = address
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0, *scope))
        except OSError as error:
            return error.errno == errno.EADDRNOTAVAIL
    return False


def _descriptors() -> Iterator[int]:
    try:
        entries = os.scandir("/proc/self/fd")
    except OSError:
        return
    with entries:
        for entry in entries:
            yield int(entry.name)


@contextlib.contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket | None]:
    """Duplicate a socket's descriptor, because the original may be closed and reused meanwhile.

    A file is never duplicated, because closing any descriptor of a file releases all locks that the process
    has on it (fcntl(2)). Another process would then take a database's log for a leftover and remove it.
    """
    sock = None
    with contextlib.suppress(OSError):  # closed meanwhile
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            duplicate = os.dup(descriptor)
            try:
                sock = socket.socket(fileno=duplicate)
            except OSError:
                os.close(duplicate)
    try:
        yield sock
    finally:
        if sock is not None:
            sock.close()
