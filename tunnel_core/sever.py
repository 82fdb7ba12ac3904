"""Ends a connection of gRPC's at once, with all that waits in its queue.

gRPC closes a connection only when its pending write is done. On a path that swallows everything that
takes until TCP gives up, and on a slow one an abandoned connection goes on competing with the new one.
Where its socket is not found TCP's own time-out has to do.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterable

from tunnel_core import own_sockets
from tunnel_core.sockets import RESET_ON_CLOSE


def sever_dialled(user_timeout_ms: int) -> None:
    """All that was dialled with this time-out, which is no other's."""
    _sever(own_sockets.dialled(user_timeout_ms))


def sever_accepted(addresses: Collection[str]) -> None:
    """The connections that came from there: ``1.2.3.4:567`` or ``[::1]:567`` each."""
    _sever(own_sockets.accepted(addresses))


def _sever(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        with contextlib.suppress(OSError):  # gone meanwhile
            # gRPC's close, which follows, then drops the queue instead of sending it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            sock.shutdown(socket.SHUT_RDWR)
