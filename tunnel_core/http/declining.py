"""Answer connections that are refused because there are too many, in the protocol that they use.

1. Nothing was read of such a connection. An answer must not cost a handshake, so on TLS it is one alert:
   ``internal_error``, which RFC 8446 names for a shortage of the server's own. A client reports it by that
   name, and ``qanat`` tries again after it.
2. An HTTP connection gets the refusal's status, sentence and word, as any refused request does.
3. A bare TCP port has no way to answer, so the connection is reset. Log and metrics have the reason.
4. The close waits for what the client is still sending (``lingering``), because the kernel's reset would
   destroy the answer. At most ``MAX_DECLINING`` connections are answered at once; others are reset.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from tunnel_core.http.server import HttpConnection
from tunnel_core.reasons import Refused
from tunnel_core.streams.lingering import linger
from tunnel_core.streams.sockets import SocketStream

Decline: TypeAlias = Callable[[SocketStream, Refused], Awaitable[None]]
"""Answers and closes; the caller sets a deadline. Raises ``trio.BrokenResourceError`` if the client left."""

MAX_DECLINING = 64
"""Refused connections of one listener that are being answered at once."""
_SECONDS = 10.0
"""Time for one answer to a refused connection and its close. An upload may be under way."""
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
_OVERLOADED = bytes(
    [21, 3, 3, 0, 2, 2, 80]
)  # a record: alert, TLS 1.2's number, 2 bytes: fatal, internal_error


async def decline_tls(stream: SocketStream, refused: Refused) -> None:
    """Send the alert ``internal_error`` in place of a handshake."""
    stream.try_send(_OVERLOADED)
    await linger(stream, is_sending=True)
    stream.close_nowait()


async def decline_http(stream: SocketStream, refused: Refused) -> None:
    """Answer the request that is about to come with the refusal."""
    connection = HttpConnection(stream)
    await connection.refuse(refused)
    await connection.linger()
    stream.close_nowait()


class Decliner:
    """Answers the refused connections of one listener. ``decline`` None: each is reset without an answer."""

    def __init__(self, decline: Decline | None) -> None:
        self._decline = decline
        self._count = 0

    @property
    def may_answer(self) -> bool:
        """Whether one more connection may be answered now; the caller resets it otherwise."""
        return self._decline is not None and self._count < MAX_DECLINING

    async def answer(self, stream: SocketStream, refused: Refused) -> None:
        """Answer, unless ``may_answer`` is false, and close or reset ``stream``. Cancelled, it resets."""
        if self._decline is None or not self.may_answer:
            stream.abort()
            return
        self._count += 1
        try:
            with trio.move_on_after(_SECONDS), contextlib.suppress(*_GONE):
                await self._decline(stream, refused)
        finally:
            self._count -= 1
            stream.abort()
