"""Ends a connection of gRPC's at once, with all that waits in its queue.

gRPC closes a connection only when its pending write is done. On a path that swallows everything that
takes until TCP gives up, and on a slow one an abandoned connection goes on competing with the new one.
Where its socket is not found TCP's own time-out has to do.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterator

from tunnel_core.own_sockets import AcceptedSockets, dialled
from tunnel_core.sockets import RESET_ON_CLOSE


def sever_dialled(user_timeout_ms: int) -> None:
    """All that was dialled with this time-out, which is no other's."""
    for sock in dialled(user_timeout_ms):
        _sever(sock)


def sever_accepted(sockets: AcceptedSockets, addresses: Collection[str]) -> Iterator[None]:
    """The connections that came from there: ``1.2.3.4:567`` or ``[::1]:567`` each.

    It is a long search in a large server: each step is short, and whoever iterates lets others run between.
    """
    for sock in sockets.find(addresses):
        if sock is None:
            yield
        else:
            _sever(sock)


def _sever(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # gone meanwhile
        # gRPC's close, which follows, then drops the queue instead of sending it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.shutdown(socket.SHUT_RDWR)
