"""Ends a connection of gRPC's at once, with all that waits in its queue.

gRPC closes a connection only when its pending write is done. On a path that swallows everything that
takes until TCP gives up, and on a slow one an abandoned connection goes on competing with the new one.
gRPC tells nobody its descriptors, so the socket is found by what only it has. Where there is no /proc
nothing is found, and TCP's own time-out has to do.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Collection, Iterator

from tunnel_core.names import join_host_port
from tunnel_core.sockets import RESET_ON_CLOSE

_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)


def sever_dialled(user_timeout_ms: int) -> None:
    """All that was dialled with this time-out, which is no other's."""
    if _USER_TIMEOUT is not None:
        _sever(lambda sock: sock.getsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT) == user_timeout_ms)


def sever_accepted(addresses: Collection[str]) -> None:
    """The connections that came from there: ``1.2.3.4:567`` or ``[::1]:567`` each."""
    _sever(lambda sock: _peer_address(sock) in addresses)


def _peer_address(sock: socket.socket) -> str:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    host, port = sock.getpeername()[:2]
    return join_host_port(host.removeprefix("::ffff:"), port)


def _sever(is_it: Callable[[socket.socket], bool]) -> None:
    for sock in _own_sockets():
        with sock, contextlib.suppress(OSError):  # not TCP, not connected, or gone meanwhile
            if is_it(sock):
                # gRPC's close, which follows, then drops the queue instead of sending it.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                sock.shutdown(socket.SHUT_RDWR)


def _own_sockets() -> Iterator[socket.socket]:
    """Duplicates, so that a descriptor that is closed and given out again meanwhile is not mistaken."""
    try:
        names = os.listdir("/proc/self/fd")  # noqa: PTH208 - ten thousand names, no objects
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):
            duplicate = os.dup(int(name))
            try:
                sock = socket.socket(fileno=duplicate)
            except OSError:
                os.close(duplicate)
                continue
            yield sock
