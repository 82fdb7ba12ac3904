"""The seam between browsers and targets: a request and its answer in any version of HTTP. No I/O.

An adapter implements ``Browser`` for one request: ``http1.py`` over ``HttpConnection``, another one for
HTTP/2. ``Exchange`` knows only this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from tunnel_core.reasons import Reason

if TYPE_CHECKING:
    import trio

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""Names, spelled as received, and values. The order is that of the message."""
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""A method, the name of a header, or a protocol (RFC 9110 section 5.6.2)."""
PATH = re.compile(rb"[\x21-\x7e]+")
"""Path and query of a request: no blank and no control character."""
BODILESS = (204, 304)
"""Final statuses whose answers have no body (RFC 9110 section 6.4.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserRequest:
    """The head of a request.

    An extended CONNECT (RFC 8441) is described as the GET with ``upgrade`` that asks for the same protocol,
    with the ``Sec-WebSocket-Key`` that HTTP/2 leaves out.
    """

    method: bytes
    scheme: bytes
    """``http`` or ``https``: how the browser reached this server."""
    authority: bytes
    """The ``Host`` header or ``:authority``; empty if there is none, as HTTP/1.0 allows."""
    target: bytes
    """Path and query, unchanged to the byte; ``*`` for some OPTIONS. Other forms are refused later."""
    headers: Headers
    """All headers but pseudo-headers. Framing and ``Host`` may be among them; they are not forwarded."""
    body_length: int | None = 0
    """Length of the body in bytes. None: there is a body of unknown length."""
    expects_continue: bool = False
    """Whether the browser waits for a 100 before it sends the body."""
    upgrade: bytes = b""
    """The protocols that the request asks to switch to, as in ``Upgrade``; empty for an ordinary request."""
    source: str
    """Address of the user, without a port."""
    is_proxied: bool = False
    """Whether a trusted proxy passed the request on."""

    @property
    def host(self) -> str:
        """The authority as text."""
        return self.authority.decode("latin-1")

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head."""
        return self.body_length != 0

    def values(self, name: bytes) -> list[bytes]:
        """Return all values of the header with this lower-case name."""
        return header_values(self.headers, name)


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """The head of an answer: of an interim one below status 200, else of the final one.

    ``headers`` has no framing but ``Content-Length``, and nothing that concerns one connection only. The
    adapter adds what its HTTP version needs.
    """

    status: int
    headers: Headers
    reason: bytes = b""


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """The end of an answer, with its trailers."""

    trailers: tuple[tuple[bytes, bytes], ...] = ()


AnswerEvent: TypeAlias = AnswerHead | bytes | AnswerEnd
"""Interim heads, one final head, pieces of the body, the end."""


class Browser(Protocol):
    """The browser's end of one request.

    One task receives or waits while others send. Calls of ``send`` may overlap, and keep their order.
    """

    @property
    def connection(self) -> object:
        """The browser's connection, by its identity alone. Requests on one connection have the same."""

    @property
    def request(self) -> BrowserRequest:
        """The head of the request."""

    @property
    def has_answered(self) -> bool:
        """Whether the final answer has begun, so that no other can be sent."""

    async def receive_body(self) -> bytes:
        """Return the next piece of the body, ``b""`` at its end. Sends no 100 by itself.

        Raises ``Refused`` with ``BAD_REQUEST``, ``USER_LEFT`` or ``IDLE_TIMEOUT``. A cancelled call loses
        nothing.
        """

    @property
    def trailers(self) -> Headers:
        """Trailers of the request, after the end of the body."""

    async def send(self, *events: AnswerEvent) -> None:
        """Send the events, in one write if possible.

        The adapter leaves out what the browser's version or the request's method does not permit: interim
        answers, trailers, the body of an answer to HEAD. Raises ``trio.BrokenResourceError`` if the browser
        has left. After cancellation the answer can only be aborted.
        """

    async def switch(self, head: AnswerHead) -> tuple[trio.abc.Stream, bytes]:
        """Accept the upgrade with ``head``, which has the status 101 and ``Upgrade``.

        Return the stream of raw bytes, and the bytes that have already been received from it. Over HTTP/2 the
        adapter sends the 200 of RFC 8441 instead, and the stream is that of the DATA frames.
        """

    def abort(self, reason: Reason) -> None:
        """End the request so that a begun answer does not look complete. Never blocks. Idempotent."""

    async def wait_left(self) -> None:
        """Return when the browser has broken the connection or reset this request.

        The end of input is no break. Call it only after the end of the body. Cancellation loses nothing.
        """


def header_values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Return all values of the header with this lower-case name."""
    return [value for key, value in headers if key.lower() == name]


def listed(values: Iterable[bytes]) -> list[bytes]:
    """Return the items, in lower case, of a header whose ``values`` are lists (RFC 9110 section 5.6.1)."""
    items = b",".join(values).lower().split(b",")
    return [stripped for item in items if (stripped := item.strip())]
