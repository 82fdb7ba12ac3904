"""Ends a connection of gRPC's at once, with all that waits in its queue.

gRPC closes a connection only when its pending write is done. On a path that swallows everything that
takes until TCP gives up, and on a slow one an abandoned connection goes on competing with the new one.
Where its socket is not found TCP's own time-out has to do.
"""

from __future__ import annotations

import contextlib
import socket

from tunnel_core.own_sockets import dialled
from tunnel_core.sockets import RESET_ON_CLOSE


def sever_dialled(user_timeout_ms: int) -> None:
    """All that was dialled with this time-out, which is no other's."""
    for sock in dialled(user_timeout_ms):
        _sever(sock)


def _sever(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # gone meanwhile
        # gRPC's close, which follows, then drops the queue instead of sending it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.shutdown(socket.SHUT_RDWR)
