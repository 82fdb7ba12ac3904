"""HTTP/1.1 over any trio stream, with h11: bounded heads, streamed bodies, protocol switches.

1. A head is checked as raw bytes before h11 parses it (``head.py``). So its limits are exact, and an
   ambiguous head is refused instead of repaired.
2. Only one head and one read are buffered: the handler pulls the body.
3. Bytes that arrived behind the head of a CONNECT or an upgrade are kept, and ``switch`` returns them.
4. One task may receive while another sends. A cancelled receive loses no byte. After a cancelled send the
   connection can only be closed.
5. A refusal is answered if no answer has begun. Otherwise the connection is aborted, because a truncated
   answer must not look complete. A refusal ends the connection in either case; after an answer ``lingering``
   closes it.
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
from tunnel_core.http.connection import READ_BYTES, Body, Connection
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
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tls import SocketTlsStream

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
"""Limit of an unread rest of a body that is discarded to keep the connection for the next request."""
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)

_log = logging.getLogger("qanat.http")


class HttpConnection(Connection):
    """The server's end of one connection."""

    def __init__(
        self, stream: trio.abc.Stream, limits: HeadLimits | None = None, turns: trio.Lock | None = None
    ) -> None:
        self.limits = limits or HeadLimits()
        super().__init__(stream, h11.SERVER, self.limits.max_head_bytes, turns)
        self.request: h11.Request | None = None
        """The request being served; None until its head is parsed."""
        self._served = 0

    @property
    def has_answered(self) -> bool:
        """Whether a final answer has begun, so that no other can be sent."""
        return self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @property
    def is_answering(self) -> bool:
        """Whether a request was received and its answer is not complete. After a switch always True."""
        return self._h11.our_state not in (h11.IDLE, h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    @property
    def is_http_1_0(self) -> bool:
        """Whether the request is of HTTP/1.0, which knows neither interim answers nor chunks."""
        return self.request is not None and self.request.http_version == b"1.0"

    async def next_request(self) -> h11.Request | None:
        """Return the next request; None if the peer ends its half or stays idle between requests.

        Raises ``Refused`` with ``HEAD_TOO_LARGE``, ``HEAD_TIMEOUT`` or ``BAD_REQUEST``.
        """
        if self._served and not await self._wait_next_head():
            return None
        if not self._served and (request := self._first_request_nowait()):
            return request
        with trio.move_on_after(self.limits.head_seconds):
            return await self._read_request()
        seconds = self.limits.head_seconds
        raise Refused(Reason.HEAD_TIMEOUT, f"the request head did not arrive within {seconds:g} seconds")

    def _first_request_nowait(self) -> h11.Request | None:
        """Return the first request if its head is here already, as is usual on the socket of a cluster."""
        if self.has_turns or not isinstance(self.stream, SocketStream):
            return None
        data = self.stream.receive_nowait(READ_BYTES)
        if not data:
            return None  # the next call receives the end once more
        self._h11.receive_data(data)
        end = head_end(data, self.limits)
        if not end:
            return None
        self._served += 1
        return self._parse_request(data[:end])

    async def _wait_next_head(self) -> bool:
        self._h11.start_next_cycle()
        self.request = None  # so that the refusal of a malformed head does not use the last request
        if self.read_ahead:
            return True
        with trio.move_on_after(self.limits.idle_seconds):
            return await self._receive()
        return False

    async def _read_request(self) -> h11.Request | None:
        checked = 0
        while not ((data := self.read_ahead) and (end := head_end(data, self.limits, checked))):
            checked = len(data)
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

    def receive_body(self, *, answer_expect: bool = True) -> Body:
        """Return the pieces of the body as they arrive.

        The first read answers ``Expect: 100-continue``, unless the caller does so by itself.
        """
        return Body(self._receive_body_event if answer_expect else self._read_body_event)

    async def _receive_body_event(self) -> h11.Data | h11.EndOfMessage:
        await self._continue_if_expected()
        return await self._read_body_event()

    async def _read_body_event(self) -> h11.Data | h11.EndOfMessage:
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
        """Send a whole answer.

        Raises ``trio.BrokenResourceError`` if the peer does not read the answer within ``answer_seconds``.
        """
        lines = [*headers, ("content-length", str(len(body)))]
        phrase = (reason or http.HTTPStatus(status).phrase).encode("ascii")
        events: list[h11.Event] = [h11.Response(status_code=status, headers=lines, reason=phrase)]
        if body and not (self.request and self.request.method == b"HEAD"):
            events.append(h11.Data(data=body))
        with trio.move_on_after(self.limits.answer_seconds):
            await self.send(*events, h11.EndOfMessage())
            return
        raise trio.BrokenResourceError("the peer did not read the answer in time")

    async def accept_connect(self, headers: Headers = ()) -> bytes:
        """Answer a CONNECT with 200 and no body, and return ``switch()``."""
        await self._send_alone(
            h11.Response(status_code=200, headers=list(headers), reason=b"Connection established")
        )
        return self.switch()

    async def refuse(self, refused: Refused) -> None:
        """Answer with the refusal's status, its sentence as the reason phrase, and its word in a header."""
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
        """End the request after its answer; return whether another request may follow on this connection.

        A short unread rest of the body is discarded; after a longer rest the result is False.
        """
        if self._h11.our_state is not h11.DONE:
            return False
        if self._h11.their_state is h11.SEND_BODY:
            with trio.move_on_after(_REST_SECONDS):
                await self._discard_body()
        return self._h11.their_state is h11.DONE

    async def _discard_body(self) -> None:
        remaining = _REST_BYTES
        while remaining > 0 and isinstance(event := await self._receive_body_event(), h11.Data):
            remaining -= len(event.data)

    async def linger(self, *, is_sending: bool = True) -> None:
        """End this half after the last answer, and discard input, because a reset could destroy the answer.

        ``is_sending`` is False if the peer has had its time to send; then the wait is short.
        """
        is_complete = self._h11.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        await linger(self.stream, is_sending=is_sending and not is_complete)

    @property
    def has_unread_input(self) -> bool:
        """Whether the peer announced or sent bytes that were not read."""
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
    """Return ``value`` as the body of an answer: JSON in one line, without spaces."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


async def respond_json(http: HttpConnection, body: bytes, headers: Headers = ()) -> None:
    """Send 200 with a JSON body that no cache may keep."""
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
    """Serve requests on ``stream`` until either end closes it, then close it.

    ``handler`` answers, or raises ``Refused``, or switches protocols and returns when the new protocol ends.
    ``on_refused`` is called for every refusal. Connections that share ``turns`` process received data one
    after the other. Other tasks run in between, also when a whole fleet connects at once.

    A broken connection returns quietly. Any other exception of the handler is logged, answered with 500, and
    not raised. Cancellation aborts a request without a complete answer with ``stopping``, and closes an idle
    connection.
    """
    connection = HttpConnection(stream, limits, turns)
    try:
        await _serve_requests(connection, handler, on_refused or _ignore)
        with trio.move_on_after(_CLOSE_SECONDS):
            await stream.aclose()
    except _BROKEN:
        pass  # the user has left, so no answer would arrive
    except BaseException:
        if connection.is_answering:
            abort(stream, stopping)
        raise
    finally:
        await _close_forcefully(stream)


def _ignore(_: Refused) -> None:
    """Default of ``on_refused``: do nothing."""


async def _close_forcefully(stream: trio.abc.Stream) -> None:
    if isinstance(stream, SocketStream | SocketTlsStream):
        stream.close_nowait()  # does the same without the exception of a cancelled checkpoint
        return
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
            # In another function, because a local name for the refusal in this frame, to which its traceback
            # refers, would be a reference cycle.
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
        abort(connection.stream, Reason.USER_LEFT)  # an incomplete answer must not look complete


def _as_refusal(error: Exception) -> Refused | None:
    """Return the refusal to answer; None for a broken connection. A nursery may wrap the error in groups."""
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
