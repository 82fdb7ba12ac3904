"""HTTP/1.1 over any trio stream, both ends, with h11: bounded heads, streamed bodies, protocol switches.

1. A head is looked at as raw bytes before h11 parses it (``head.py``), so bounds are exact and
   nothing ambiguous is repaired.
2. Nothing is buffered but one head and one read: bodies are pulled by whoever consumes them.
3. Bytes that arrived behind the head of a CONNECT or an upgrade are kept and come out of ``switch``.
4. One task may receive while another sends. Cancelling a receive loses nothing; a cancelled send
   leaves the connection good for nothing but closing.
5. A refusal is answered if no answer has begun, else the connection is aborted: a truncated answer
   must not look complete. After either the connection ends: behind an answer as ``lingering`` says.
"""

from __future__ import annotations

import http
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeAlias

import h11
import trio

from tunnel_core.http.client import HttpClientConnection, exchange
from tunnel_core.http.connection import Body, Connection
from tunnel_core.http.head import (
    REASON_HEADER,
    HeadLimits,
    HttpRefused,
    check_raw_head,
    check_request,
    head_end,
    header_values,
    reason_phrase,
    refusal_body,
    wants_json,
    wording,
)
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.lingering import linger
from tunnel_core.streams.relay import abort

__all__ = [
    "REASON_HEADER",
    "Body",
    "Handler",
    "HeadLimits",
    "Headers",
    "HttpClientConnection",
    "HttpConnection",
    "exchange",
    "header_values",
    "json_body",
    "read_body",
    "reason_phrase",
    "respond_json",
    "serve_http",
]

Headers: TypeAlias = Iterable[tuple[str, str]]
_CLOSE_SECONDS = 1.0
_REST_SECONDS = 1.0
_REST_BYTES = 256 * 1024
"""How much of an unread body is discarded to keep the connection for the next request."""
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)

_log = logging.getLogger("qanat.http")


class HttpConnection(Connection):
    """The server's side of one connection."""

    def __init__(
        self, stream: trio.abc.Stream, limits: HeadLimits | None = None, turns: trio.Lock | None = None
    ) -> None:
        self.limits = limits or HeadLimits()
        super().__init__(stream, h11.SERVER, self.limits.max_head_bytes, turns)
        self.request: h11.Request | None = None
        """The request being served; None until its head is understood."""
        self._served = 0

    @property
    def has_answered(self) -> bool:
        """Whether a final answer has begun, so that no other can be given."""
        return self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @property
    def is_answering(self) -> bool:
        """Whether a request was received and its answer is not complete; after a switch always."""
        return self._h11.our_state not in (h11.IDLE, h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    async def next_request(self) -> h11.Request | None:
        """The next request; None when the peer ended or idled away between requests.

        Raises ``Refused`` with ``HEAD_TOO_LARGE``, ``HEAD_TIMEOUT`` or ``BAD_REQUEST``.
        """
        if self._served and not await self._wait_next_head():
            return None
        with trio.move_on_after(self.limits.head_seconds):
            return await self._read_request()
        seconds = self.limits.head_seconds
        raise Refused(Reason.HEAD_TIMEOUT, f"the request head did not arrive within {seconds:g} seconds")

    async def _wait_next_head(self) -> bool:
        self._h11.start_next_cycle()
        self.request = None  # or what is no request would be answered as the one before it
        if self.read_ahead:
            return True
        with trio.move_on_after(self.limits.idle_seconds):
            return await self._receive()
        return False

    async def _read_request(self) -> h11.Request | None:
        looked_at = 0
        while not ((data := self._h11.trailing_data[0]) and (end := head_end(data, self.limits, looked_at))):
            looked_at = len(data)
            if not await self._receive():
                if data:
                    raise Refused(Reason.BAD_REQUEST, "the connection ended in the middle of a request head")
                return None
        self._served += 1
        return self._parse_request(data[:end])

    def _parse_request(self, head: bytes) -> h11.Request:
        check_raw_head(head)

        try:
            request = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise Refused(Reason.BAD_REQUEST, f"the request is malformed: {wording(error)}") from None
        assert isinstance(request, h11.Request)
        self.request = request
        if not check_request(request, self.limits):
            # h11 allows a switch only after it has reported the end of the request.
            self._h11.next_event()
        return request

    async def _receive_body_event(self) -> h11.Data | h11.EndOfMessage:
        await self._continue_if_expected()
        try:
            with trio.move_on_after(self.limits.body_idle_seconds):
                return await self._next_body_event()
        except h11.RemoteProtocolError as error:
            if self._h11.trailing_data[1]:
                raise Refused(Reason.USER_LEFT, "the connection ended in the middle of the body") from None
            raise Refused(Reason.BAD_REQUEST, f"the request body is malformed: {wording(error)}") from None
        raise Refused(Reason.IDLE_TIMEOUT, "the request body stopped arriving")

    async def _continue_if_expected(self) -> None:
        if self._h11.they_are_waiting_for_100_continue and not self.has_answered:
            await self.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))

    async def respond(self, status: int, reason: str = "", headers: Headers = (), body: bytes = b"") -> None:
        """Sends a whole answer. Raises ``trio.BrokenResourceError`` if it is not taken in time."""
        lines = [*headers, ("content-length", str(len(body)))]
        phrase = (reason or http.HTTPStatus(status).phrase).encode("ascii")
        events: list[h11.Event] = [h11.Response(status_code=status, headers=lines, reason=phrase)]
        if body and not (self.request and self.request.method == b"HEAD"):
            events.append(h11.Data(data=body))
        with trio.move_on_after(self.limits.answer_seconds):
            await self.send(*events, h11.EndOfMessage())
            return
        raise trio.BrokenResourceError("the answer was not taken in time")

    async def accept_connect(self, headers: Headers = ()) -> bytes:
        """Answers a CONNECT with 200 and nothing behind the blank line; returns ``switch()``."""
        await self.send(
            h11.Response(status_code=200, headers=list(headers), reason=b"Connection established")
        )
        return self.switch()

    async def refuse(self, refused: Refused) -> None:
        """Answers with the refusal's status, its sentence as the reason phrase, and its word."""
        content_type, body = refusal_body(refused, as_json=wants_json(self.request))
        headers = [
            ("content-type", content_type),
            (REASON_HEADER, refused.reason.word),
            ("cache-control", "no-store"),
            ("connection", "close"),
            *(refused.headers if isinstance(refused, HttpRefused) else ()),
        ]
        await self.respond(refused.reason.status, reason_phrase(refused), headers, body)

    async def finish(self) -> bool:
        """Ends the cycle after an answer; whether another request may follow on this connection.

        A short rest of an unread body is thrown away; a long one costs the connection.
        """
        if self._h11.our_state is not h11.DONE:
            return False
        if self._h11.their_state is h11.SEND_BODY:
            with trio.move_on_after(_REST_SECONDS):
                await self._discard_body()
        return self._h11.their_state is h11.DONE

    async def _discard_body(self) -> None:
        left = _REST_BYTES
        while left > 0 and isinstance(event := await self._receive_body_event(), h11.Data):
            left -= len(event.data)

    async def linger(self, *, is_sending: bool = True) -> None:
        """End our half after the last answer and discard what still comes, or the peer may lose the answer.

        ``is_sending`` false: the peer has had its time to send.
        """
        is_complete = self._h11.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        await linger(self.stream, is_sending=is_sending and not is_complete)

    @property
    def has_unread_input(self) -> bool:
        """Whether the peer announced or sent more than what was taken."""
        return self._h11.their_state is h11.SEND_BODY or bool(self.read_ahead)


async def read_body(http: HttpConnection, max_bytes: int, seconds: float, *, too_large: Reason) -> bytes:
    """Return the whole body of the request.

    Raises ``Refused`` with ``too_large`` above ``max_bytes``, and with ``HEAD_TIMEOUT`` after ``seconds``.
    """
    collected = bytearray()
    with trio.move_on_after(seconds):
        async for piece in http.receive_body():
            collected += piece
            if len(collected) > max_bytes:
                raise Refused(too_large, f"the request body is larger than {max_bytes // 1024} KiB")
        return bytes(collected)
    raise Refused(Reason.HEAD_TIMEOUT, f"the request body did not arrive within {seconds:g} seconds")


def json_body(value: object) -> bytes:
    """Return ``value`` as the body of an answer: JSON without spaces, one line."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


async def respond_json(http: HttpConnection, body: bytes, headers: Headers = ()) -> None:
    """Send 200 with a body of JSON, which no cache keeps."""
    lines = [("content-type", "application/json"), *headers, ("cache-control", "no-store")]
    await http.respond(200, "OK", lines, body)


Handler: TypeAlias = Callable[[HttpConnection, h11.Request], Awaitable[None]]


async def serve_http(
    stream: trio.abc.Stream,
    handler: Handler,
    limits: HeadLimits | None = None,
    *,
    on_refused: Callable[[Refused], None] | None = None,
    turns: trio.Lock | None = None,
    stopping: Reason = Reason.SERVER_STOPPING,
) -> None:
    """Serves requests on ``stream`` until either side ends it, then closes it.

    ``handler`` answers, or raises ``Refused``, or switches protocols and serves on until that ends.
    ``on_refused`` hears of every refusal. Connections that share ``turns`` deal with what arrived one after
    the other, with all that waits meanwhile in between: a fleet comes at once. A broken connection ends this
    quietly; any other exception of the handler is logged, answered with 500, and not passed on. Cancelled:
    a request that is not answered yet is aborted with ``stopping``, an idle connection is closed.
    """
    connection = HttpConnection(stream, limits, turns)
    try:
        await _serve_requests(connection, handler, on_refused or _ignore)
        with trio.move_on_after(_CLOSE_SECONDS):
            await stream.aclose()
    except _BROKEN:
        pass  # the user left; there is nobody to tell
    except BaseException:
        if connection.is_answering:
            abort(stream, stopping)
        raise
    finally:
        await _close_forcefully(stream)


def _ignore(_: Refused) -> None:
    """The caller does not care for refusals."""


async def _close_forcefully(stream: trio.abc.Stream) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
        await trio.aclose_forcefully(stream)


async def _serve_requests(
    connection: HttpConnection, handler: Handler, on_refused: Callable[[Refused], None]
) -> None:
    while True:
        try:
            request = await connection.next_request()
            if request is None:
                return
            await handler(connection, request)
            if connection.has_switched:
                return
            if not await connection.finish():
                if connection.has_unread_input:
                    await connection.linger()
                return
        except Exception as error:
            # Elsewhere: a local name for the refusal here, where its traceback begins, would be a circle.
            await _answer_failure(connection, error, on_refused)
            return


async def _answer_failure(
    connection: HttpConnection, error: Exception, on_refused: Callable[[Refused], None]
) -> None:
    refused = _as_refusal(error)
    if refused is not None:
        on_refused(refused)
        await _refuse_and_end(connection, refused)
    elif connection.is_answering:
        abort(connection.stream, Reason.USER_LEFT)  # half an answer must not look whole


def _as_refusal(error: Exception) -> Refused | None:
    """What to answer; None for a broken connection. A nursery may have wrapped the cause in groups."""
    leaves = list(_leaves(error))
    if all(isinstance(leaf, _BROKEN) for leaf in leaves):
        return None
    if all(isinstance(leaf, (Refused, *_BROKEN)) for leaf in leaves):
        return next(leaf for leaf in leaves if isinstance(leaf, Refused))
    _log.error("a request handler failed", exc_info=error)
    return Refused(Reason.INTERNAL_ERROR)


def _leaves(error: Exception) -> Iterator[Exception]:
    if not isinstance(error, ExceptionGroup):
        yield error
        return
    for inner in error.exceptions:
        yield from _leaves(inner)


async def _refuse_and_end(connection: HttpConnection, refused: Refused) -> None:
    if connection.has_answered:
        abort(connection.stream, refused.reason, refused.detail)
        return
    await connection.refuse(refused)
    await connection.linger(is_sending=refused.reason is not Reason.HEAD_TIMEOUT)
