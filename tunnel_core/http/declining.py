"""Answer connections that are refused because there are too many, in the protocol that they use.

1. TLS. The answer must not cost a handshake, so it is one alert, sent before any byte is read. RFC 8446
   defines ``internal_error`` for a failure of the server itself, such as a lack of memory. A client reports
   the alert by its name, and ``qanat`` retries after it.
2. HTTP. The answer is the refusal's status, sentence and word, like the answer to any refused request.
3. A plain TCP port has no protocol for an answer, so the connection is reset. Log and metrics have the
   reason.
4. The close waits for bytes that the client is still sending (``lingering``), because the kernel's reset
   would destroy the answer. At most ``MAX_DECLINING`` connections are answered at once; others are reset.
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
"""Answers and closes a connection, within the caller's deadline. Raises ``trio.BrokenResourceError`` if the
client has left."""

MAX_DECLINING = 64
"""Limit of refused connections of one listener that are answered at once."""
_SECONDS = 10.0
"""Time for one answer to a refused connection and its close. An upload may be under way."""
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
_OVERLOADED = bytes([21, 3, 3, 0, 2, 2, 80])
"""One TLS record: type alert, version of TLS 1.2, length 2, level fatal, description internal_error."""


async def decline_tls(stream: SocketStream, refused: Refused) -> None:
    """Send the alert ``internal_error`` instead of a handshake."""
    stream.try_send(_OVERLOADED)
    await linger(stream, is_sending=True)
    stream.close_nowait()


async def decline_http(stream: SocketStream, refused: Refused) -> None:
    """Send the refusal as the answer to the first request, before it arrives."""
    connection = HttpConnection(stream)
    await connection.refuse(refused)
    await connection.linger()
    stream.close_nowait()


class Decliner:
    """Answer the refused connections of one listener; without ``decline``, reset each connection."""

    def __init__(self, decline: Decline | None) -> None:
        self._decline = decline
        self._count = 0

    @property
    def may_answer(self) -> bool:
        """Whether one more connection may be answered now; the caller resets it otherwise."""
        return self._decline is not None and self._count < MAX_DECLINING

    async def answer(self, stream: SocketStream, refused: Refused) -> None:
        """Answer and close ``stream``; reset it if ``may_answer`` is False, or if cancelled."""
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
