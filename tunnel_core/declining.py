"""Tell a connection that a count refuses why, in the words of the protocol that it is about to speak.

1. Nothing was read of such a connection. An answer must not cost a handshake, so on TLS it is one alert:
   ``internal_error``, which RFC 8446 names for a shortage of the server's own. A client reports it by that
   name, and ``qanat`` tries again after it.
2. An HTTP connection gets the refusal's status, sentence and word, as any refused request does.
3. A bare TCP port has no words: the reset is all that there is. The log and the metrics have the reason.
4. The close waits for what the client has under way (``lingering``), or the kernel's reset would destroy the
   answer. The number that wait at once is bounded as well; beyond it connections are reset.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from tunnel_core.http import HttpConnection
from tunnel_core.lingering import linger
from tunnel_core.reasons import Refused
from tunnel_core.sockets import SocketStream

Decline: TypeAlias = Callable[[SocketStream, Refused], Awaitable[None]]
"""Answers and closes; the caller sets a deadline. Raises ``trio.BrokenResourceError`` if the client left."""

MAX_DECLINING = 64
"""Refused connections of one listener that are being told so at once."""
_OVERLOADED = bytes(
    [21, 3, 3, 0, 2, 2, 80]
)  # a record: alert, TLS 1.2's number, 2 bytes: fatal, internal_error


async def decline_tls(stream: SocketStream, refused: Refused) -> None:
    """Sends the alert ``internal_error`` in place of a handshake."""
    stream.send_nowait(_OVERLOADED)
    await linger(stream, is_sending=True)
    stream.close_nowait()


async def decline_http(stream: SocketStream, refused: Refused) -> None:
    """Answers the request that is about to come with the refusal."""
    connection = HttpConnection(stream)
    await connection.refuse(refused)
    await connection.linger()
    stream.close_nowait()
