"""Finds the sockets of gRPC's connections, which it shows to nobody: each by what only it has.

Where there is no /proc nothing is found, and whoever asked has to do without.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Collection, Iterator
from typing import Any

from tunnel_core.names import join_host_port

HELD_BYTES_PER_SECOND = 16_000
"""A sixteenth of the thinnest link that is worth it: enough to be heard, and no queue in anybody's way."""
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)
_SO_MAX_PACING_RATE = 47  # Linux; Python has no name for it
_UNPACED = 0xFFFFFFFF
_LOOKED_AT = 64
"""Descriptors in one go: half a millisecond."""


def dialled(user_timeout_ms: int) -> Iterator[socket.socket]:
    """Those that were dialled with this time-out, which is no other's. Duplicates, closed one by one."""
    if _USER_TIMEOUT is not None:
        for descriptor in _descriptors():
            with _duplicate(descriptor) as sock, contextlib.suppress(OSError):  # not TCP, or gone meanwhile
                if sock and sock.getsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT) == user_timeout_ms:
                    yield sock


class AcceptedSockets:
    """Finds those that were accepted at ``ports`` by where they came from.

    The ports belong to it: a client may use the same port of its own for connections to two of our listeners.

    To look at all descriptors of a server with 10,000 agents takes 70 ms. So each search remembers what it
    saw, and only one for those that came since looks at all again.
    """

    def __init__(self, ports: Collection[int] = ()) -> None:
        self.ports = set(ports)
        self._seen: dict[str, int] = {}

    def find(self, addresses: Collection[str]) -> Iterator[socket.socket | None]:
        """Duplicates as well, of ``1.2.3.4:567`` or ``[::1]:567`` each. None: here others may run."""
        wanted = set(addresses)
        for number, address in enumerate(wanted & self._seen.keys(), 1):
            wanted.discard(address)
            with _duplicate(self._seen.pop(address)) as sock:
                if (
                    self._peer_address(sock) == address
                ):  # or else it was closed, and its number given out again
                    yield sock
            if number % _LOOKED_AT == 0:
                yield None
        if wanted:
            yield from self._search(wanted)

    def _search(self, wanted: set[str]) -> Iterator[socket.socket | None]:
        self._seen = {}
        for number, descriptor in enumerate(_descriptors(), 1):
            with _duplicate(descriptor) as sock:
                address = self._peer_address(sock)
                if address in wanted:
                    yield sock
                elif address:
                    self._seen[address] = descriptor
            if number % _LOOKED_AT == 0:
                yield None

    def _peer_address(self, sock: socket.socket | None) -> str:
        """Empty for what is no IP socket, not connected, or not of one of the ports."""
        if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return ""
        try:
            host, port = sock.getpeername()[:2]
            is_ours = sock.getsockname()[1] in self.ports
        except OSError:
            return ""
        return join_host_port(host.removeprefix("::ffff:"), port) if is_ours else ""


def has_lost_its_address(user_timeout_ms: int) -> bool:
    """Whether one that was dialled goes out from an address that this machine does not have any more."""
    return any(_is_gone(sock.family, sock.getsockname()) for sock in dialled(user_timeout_ms))


def hold_back(user_timeout_ms: int, *, held: bool) -> None:
    """Whether TCP sends no more than ``HELD_BYTES_PER_SECOND`` of what was given to one that was dialled."""
    rate = struct.pack("I", HELD_BYTES_PER_SECOND if held else _UNPACED)
    for sock in dialled(user_timeout_ms):
        with contextlib.suppress(OSError):  # gone meanwhile
            sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate)


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
