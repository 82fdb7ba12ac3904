"""Connections of tests to listeners on this machine that may reset them at once."""

from __future__ import annotations

import socket

import trio


async def dial(host: str, port: int) -> trio.SocketStream:
    """A TCP connection, whose reset shows at its first receive, however soon it came.

    Over loopback a blocking connect is done when it returns, and no task of this process runs meanwhile.
    trio's own connect lets the listener run first: a reset from there would come up as its ``OSError``.
    """
    await trio.lowlevel.checkpoint()
    sock = socket.create_connection((host, port))
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
