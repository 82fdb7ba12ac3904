"""Finds the sockets of gRPC's connections, which it shows to nobody: each by what only it has.

Where there is no /proc nothing is found, and whoever asked has to do without.

gRPC closes a connection only when its pending write is done. On a path that swallows everything that takes
until TCP gives up, and on a slow one an abandoned connection goes on competing with the new one. So an
abandoned connection is reset here, with all that waits in its queue. Where its socket is not found, TCP's own
time-out has to do.
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

HELD_BYTES_PER_SECOND = 16_000
"""Rate of a late carrier while another attempt is under way: a sixteenth of the thinnest link that is
supported. The carrier stays alive, and its queue does not stop the attempt."""
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)
_SO_MAX_PACING_RATE = 47  # Linux; Python has no name for it
_UNPACED = 0xFFFFFFFF
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST
_LOOKED_AT = 64
"""Descriptors in one go: half a millisecond."""


def dialled(user_timeout_ms: int) -> Iterator[socket.socket]:
    """Those that were dialled with this time-out, which is no other's. Duplicates, closed one by one."""
    if _USER_TIMEOUT is not None:
        for descriptor in _descriptors():
            with _duplicate(descriptor) as sock, contextlib.suppress(OSError):  # not TCP, or gone meanwhile
                if sock and sock.getsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT) == user_timeout_ms:
                    yield sock


def has_lost_its_address(user_timeout_ms: int) -> bool:
    """Whether one that was dialled goes out from an address that this machine does not have any more."""
    return any(_is_gone(sock.family, sock.getsockname()) for sock in dialled(user_timeout_ms))


def throttle(user_timeout_ms: int, *, held: bool) -> None:
    """Whether TCP sends no more than ``HELD_BYTES_PER_SECOND`` of what was given to one that was dialled."""
    rate = struct.pack("I", HELD_BYTES_PER_SECOND if held else _UNPACED)
    for sock in dialled(user_timeout_ms):
        with contextlib.suppress(OSError):  # gone meanwhile
            sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate)


def reset_dialled(user_timeout_ms: int) -> None:
    """Reset all that were dialled with this time-out. gRPC's close, which follows, then drops the queue."""
    for sock in dialled(user_timeout_ms):
        with contextlib.suppress(OSError):  # gone meanwhile
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
    """So that a descriptor that is closed and given out again meanwhile is not mistaken.

    Never of a file: closing any descriptor of it gives up all locks that the process has on it (fcntl(2)),
    those of a database too, whose log another process would then take for left over, and remove.
    """
    sock = None
    with contextlib.suppress(OSError):  # gone meanwhile
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
