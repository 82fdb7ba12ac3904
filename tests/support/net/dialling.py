"""Connections from tests to listeners on this machine that may reset them at once."""

from __future__ import annotations

import socket

import trio


async def dial(host: str, port: int) -> trio.SocketStream:
    """Return a TCP connection whose reset shows at its first receive, however early the reset came.

    Over loopback a blocking connect is done when it returns, and no task of this process runs meanwhile.
    trio's own connect lets the listener run first, so a reset would raise ``OSError`` in the connect.
    """
    await trio.lowlevel.checkpoint()
    sock = socket.create_connection((host, port))
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
