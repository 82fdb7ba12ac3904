"""Browsers that speak HTTP/1.1: the adapter between ``HttpConnection`` and the seam in ``messages.py``."""

from __future__ import annotations

import h11
import trio

from tunnel_core.http.server import HttpConnection
from tunnel_core.reasons import Reason
from tunnel_core.streams.relay import abort
from tunnel_server.reverse_proxy.messages import (
    BODILESS,
    AnswerEnd,
    AnswerEvent,
    AnswerHead,
    BrowserRequest,
    Headers,
    header_values,
    listed,
)

_HTTP_1_1 = b"1.1"


def browser_request(request: h11.Request, source: str, scheme: bytes = b"http") -> BrowserRequest:
    """Return the head of a request that ``HttpConnection`` has checked."""
    headers = request.headers.raw_items()
    is_current = request.http_version == _HTTP_1_1
    lengths = header_values(headers, b"content-length")
    is_coded = bool(header_values(headers, b"transfer-encoding"))
    expected = b",".join(header_values(headers, b"expect")).lower()
    return BrowserRequest(
        method=request.method,
        scheme=scheme,
        authority=b"".join(header_values(headers, b"host")[:1]),
        target=request.target,
        headers=headers,
        body_length=None if is_coded else int(lengths[0]) if lengths else 0,
        expects_continue=is_current and expected.strip() == b"100-continue",
        upgrade=_upgrade(headers) if is_current else b"",
        source=source,
    )


def _upgrade(headers: Headers) -> bytes:
    """Return the protocols in ``Upgrade`` if ``Connection`` names that header (RFC 9110 section 7.8)."""
    if b"upgrade" not in listed(header_values(headers, b"connection")):
        return b""
    return b", ".join(header_values(headers, b"upgrade"))


class Http1Browser:
    """One request on the connection ``http``."""

    def __init__(self, http: HttpConnection, request: BrowserRequest) -> None:
        self._http = http
        self.request = request
        self.trailers: Headers = []
        self._body = http.receive_body(answer_expect=False)
        self._is_chunked = False

    @property
    def connection(self) -> object:
        """The browser's connection, by its identity alone."""
        return self._http

    @property
    def has_answered(self) -> bool:
        """Whether the final answer has begun."""
        return self._http.has_answered

    async def receive_body(self) -> bytes:
        """Return the next piece of the body, ``b""`` at its end."""
        async for piece in self._body:
            return piece
        self.trailers = self._body.trailers
        return b""

    async def send(self, *events: AnswerEvent) -> None:
        """Send the events as one write. A browser of HTTP/1.0 gets no interim answers."""
        await self._http.send(*[mapped for event in events if (mapped := self._map(event)) is not None])

    def _map(self, event: AnswerEvent) -> h11.Event | None:
        if isinstance(event, AnswerHead):
            return self._head(event)
        if isinstance(event, AnswerEnd):
            return h11.EndOfMessage(headers=list(event.trailers) if self._is_chunked else [])
        return h11.Data(data=event)

    def _head(self, head: AnswerHead) -> h11.Event | None:
        if head.status >= 200:
            has_body = self.request.method != b"HEAD" and head.status not in BODILESS
            has_length = bool(header_values(head.headers, b"content-length"))
            self._is_chunked = has_body and not has_length and not self._http.is_http_1_0
            return h11.Response(status_code=head.status, headers=head.headers, reason=head.reason)
        if self._http.is_http_1_0:
            return None
        return h11.InformationalResponse(status_code=head.status, headers=head.headers, reason=head.reason)

    async def switch(self, head: AnswerHead) -> tuple[trio.abc.Stream, bytes]:
        """Send the 101, and return the connection with the bytes that have already arrived."""
        headers = [*head.headers, (b"Connection", b"Upgrade")]
        await self._http.send(
            h11.InformationalResponse(status_code=head.status, headers=headers, reason=head.reason)
        )
        return self._http.stream, self._http.switch()

    def abort(self, reason: Reason) -> None:
        """Reset the connection."""
        abort(self._http.stream, reason)

    async def wait_left(self) -> None:
        """Return when the browser has broken the connection."""
        await self._http.wait_left()
