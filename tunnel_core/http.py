"""HTTP/1.1 over any trio stream, both ends, with h11: bounded heads, streamed bodies, protocol switches.

1. A head is looked at as raw bytes before h11 parses it (``http_head``), so bounds are exact and
   nothing ambiguous is repaired.
2. Nothing is buffered but one head and one read: bodies are pulled by whoever consumes them.
3. Bytes that arrived behind the head of a CONNECT or an upgrade are kept and come out of ``switch``.
4. One task may receive while another sends. Cancelling a receive loses nothing; a cancelled send
   leaves the connection good for nothing but closing.
5. A refusal is answered if no answer has begun, else the connection is aborted: a truncated answer
   must not look complete. After either the connection ends.
"""

from __future__ import annotations

import http
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import TypeAlias

import h11
import trio

from tunnel_core.http_head import (
    REASON_HEADER,
    HeadLimits,
    check_one_length,
    check_raw_head,
    check_request,
    head_bytes,
    head_end,
    header_values,
    reason_phrase,
    refusal_body,
    wants_json,
    wording,
)
from tunnel_core.reasons import Reason, Refused
from tunnel_core.relay import abort

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
    "reason_phrase",
    "serve_http",
]

Headers: TypeAlias = Iterable[tuple[str, str]]
_READ_BYTES = 64 * 1024
MAX_READ_AHEAD = 64 * 1024
"""Bytes taken from a user before the answer; the initial credit of a stream, which carries them."""
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 256 * 1024
_MAX_INTERIM_ANSWERS = 10
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)

_log = logging.getLogger("qanat.http")


class Body(AsyncIterator[bytes]):
    """The pieces of a body. No generator, because those must not be dropped half-way under trio."""

    def __init__(self, receive_event: Callable[[], Awaitable[h11.Data | h11.EndOfMessage]]) -> None:
        self._receive_event = receive_event

    async def __anext__(self) -> bytes:
        event = await self._receive_event()
        if isinstance(event, h11.EndOfMessage):
            raise StopAsyncIteration
        return bytes(event.data)

    async def aclose(self) -> None:
        """Gives up reading, for ``aclosing``. What is left stays with the connection."""


class _Connection:
    """What both ends share: an h11 machine fed from a stream, sends in order, bodies, the switch."""

    def __init__(self, stream: trio.abc.Stream, role: type[h11.CLIENT | h11.SERVER], max_event: int) -> None:
        self.stream = stream
        self.has_switched = False
        self._h11 = h11.Connection(role, max_incomplete_event_size=max_event)
        self._sending = trio.Lock()

    @property
    def read_ahead(self) -> bytes:
        """What has arrived behind everything parsed so far."""
        return self._h11.trailing_data[0]

    async def send(self, *events: h11.Event) -> None:
        """Sends the events as one write. ``ConnectionClosed`` sends nothing."""
        async with self._sending:
            data = b"".join(self._h11.send(event) or b"" for event in events)
            if data:
                await self.stream.send_all(data)

    def switch(self) -> bytes:
        """Leaves HTTP after the 2xx to a CONNECT or the 101; the stream is the caller's from now on.

        Returns the bytes of the new protocol that have been read already.
        """
        if self._h11.our_state is not h11.SWITCHED_PROTOCOL:
            raise RuntimeError("switch() needs an accepted CONNECT or upgrade")
        self.has_switched = True
        return self.read_ahead

    async def wait_left(self) -> None:
        """Returns when the peer has closed or broken the connection; what it sends is kept.

        Reads at most ``MAX_READ_AHEAD`` bytes ahead and notices nothing more beyond them. Cancel it
        when the answer is there. Not together with another receive on this connection.
        """
        try:
            while len(self.read_ahead) < MAX_READ_AHEAD:
                if not await self._receive(MAX_READ_AHEAD):
                    return
        except trio.BrokenResourceError:
            return
        await trio.sleep_forever()

    async def _receive(self, size: int = _READ_BYTES) -> bool:
        data = await self.stream.receive_some(size)
        self._h11.receive_data(bytes(data))
        return bool(data)

    def receive_body(self) -> Body:
        """The body as it comes.

        Of a request: the first read answers ``Expect: 100-continue``; raises ``Refused`` with
        ``BAD_REQUEST``, ``USER_LEFT`` or ``IDLE_TIMEOUT``. Of an answer: with ``TARGET_PROTOCOL``.
        """
        return Body(self._receive_body_event)

    async def _receive_body_event(self) -> h11.Data | h11.EndOfMessage:
        raise NotImplementedError

    async def _next_body_event(self) -> h11.Data | h11.EndOfMessage:
        while self._h11.their_state is h11.SEND_BODY:
            event = self._h11.next_event()
            if isinstance(event, h11.Data | h11.EndOfMessage):
                return event
            await self._receive()
        return h11.EndOfMessage()


class HttpConnection(_Connection):
    """The server's side of one connection."""

    def __init__(self, stream: trio.abc.Stream, limits: HeadLimits | None = None) -> None:
        self.limits = limits or HeadLimits()
        super().__init__(stream, h11.SERVER, self.limits.max_head_bytes)
        self.request: h11.Request | None = None
        """The request being served; None before the first."""
        self._served = 0

    @property
    def has_answered(self) -> bool:
        """Whether a final answer has begun, so that no other can be given."""
        return self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

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
        if self.read_ahead:
            return True
        with trio.move_on_after(self.limits.idle_seconds):
            return await self._receive()
        return False

    async def _read_request(self) -> h11.Request | None:
        looked_at = 0
        while not (end := head_end(data := self.read_ahead, self.limits, looked_at)):
            looked_at = len(data)
            if not await self._receive():
                if data:
                    raise Refused(Reason.BAD_REQUEST, "the connection ended in the middle of a request head")
                return None
        self._served += 1
        return self._parse_request(data[:end])

    def _parse_request(self, head: bytes) -> h11.Request:
        check_raw_head(head)
        check_one_length(head)
        try:
            request = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise Refused(Reason.BAD_REQUEST, f"the request is malformed: {wording(error)}") from None
        assert isinstance(request, h11.Request)
        self.request = request
        check_request(request, self.limits)
        if not _has_body(request):
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
        ]
        await self.respond(refused.reason.status, reason_phrase(refused), headers, body)

    async def finish(self) -> bool:
        """Ends the cycle after an answer; whether another request may follow on this connection.

        A short rest of an unread body is thrown away; a long one costs the connection.
        """
        if self._h11.our_state is not h11.DONE:
            return False
        if self._h11.their_state is h11.SEND_BODY:
            with trio.move_on_after(_LINGER_SECONDS):
                await self._discard_body()
        return self._h11.their_state is h11.DONE

    async def _discard_body(self) -> None:
        left = _LINGER_BYTES
        while left > 0 and isinstance(event := await self._receive_body_event(), h11.Data):
            left -= len(event.data)

    async def linger(self) -> None:
        """Reads a little more before a close: closing over unread bytes makes the kernel reset the
        connection, and the peer would lose the answer that says why."""
        left = _LINGER_BYTES
        with trio.move_on_after(_LINGER_SECONDS):
            if isinstance(self.stream, trio.abc.HalfCloseableStream):
                await self.stream.send_eof()
            while left > 0 and (data := await self.stream.receive_some(_READ_BYTES)):
                left -= len(data)


def _has_body(request: h11.Request) -> bool:
    lengths = header_values(request, b"content-length")
    return bool(header_values(request, b"transfer-encoding")) or (
        bool(lengths) and lengths[0].strip(b"0") != b""
    )


Handler: TypeAlias = Callable[[HttpConnection, h11.Request], Awaitable[None]]


async def serve_http(
    stream: trio.abc.Stream,
    handler: Handler,
    limits: HeadLimits | None = None,
    *,
    on_refused: Callable[[Refused], None] | None = None,
) -> None:
    """Serves requests on ``stream`` until either side ends it, then closes it.

    ``handler`` answers, or raises ``Refused``, or switches protocols and serves on until that ends.
    ``on_refused`` hears of every refusal. A broken connection ends this quietly; any other exception
    of the handler is logged, answered with 500, and not passed on. Cancelled: aborts the stream.
    """
    connection = HttpConnection(stream, limits)
    try:
        await _serve_requests(connection, handler, on_refused or _ignore)
        with trio.move_on_after(_LINGER_SECONDS):
            await stream.aclose()
    except _BROKEN:
        pass  # the user left; there is nobody to tell
    finally:
        await _close_forcefully(stream)


def _ignore(_: Refused) -> None:
    """The caller does not care for refusals."""


async def _close_forcefully(stream: trio.abc.Stream) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _LINGER_SECONDS):
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
            if connection.has_switched or not await connection.finish():
                return
        except Exception as error:
            refused = _as_refusal(error)
            if refused is None:
                return
            on_refused(refused)
            await _refuse_and_end(connection, refused)
            return


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
    await connection.linger()


class HttpClientConnection(_Connection):
    """The client's side of one connection; also towards targets, so nothing in it is trusted.

    ``peer`` names the other end in sentences.
    """

    def __init__(
        self, stream: trio.abc.Stream, limits: HeadLimits | None = None, peer: str = "the target"
    ) -> None:
        self.limits = limits or HeadLimits()
        super().__init__(stream, h11.CLIENT, self.limits.max_head_bytes)
        self._peer = peer

    async def receive_response(
        self, timeout_seconds: float | None = None
    ) -> h11.Response | h11.InformationalResponse:
        """The final answer's head, or the 101 that accepts an upgrade; other interim answers are skipped.

        Raises ``Refused``: ``TARGET_TIMEOUT`` or ``TARGET_PROTOCOL``.
        """
        with trio.move_on_after(float("inf") if timeout_seconds is None else timeout_seconds):
            return await self._read_response()
        raise Refused(
            Reason.TARGET_TIMEOUT, f"{self._peer} did not answer within {timeout_seconds:g} seconds"
        )

    async def _read_response(self) -> h11.Response | h11.InformationalResponse:
        for _ in range(_MAX_INTERIM_ANSWERS):
            event = await self._next_head()
            if isinstance(event, h11.Response) or event.status_code == 101:
                return event
        raise Refused(Reason.TARGET_PROTOCOL, f"{self._peer} sent too many interim answers")

    async def _next_head(self) -> h11.Response | h11.InformationalResponse:
        while (event := self._next_event()) is h11.NEED_DATA:
            await self._receive()
        if not isinstance(event, h11.Response | h11.InformationalResponse):
            raise Refused(Reason.TARGET_PROTOCOL, f"{self._peer} closed the connection without an answer")
        if len(event.headers) > self.limits.max_headers or head_bytes(event) > self.limits.max_head_bytes:
            raise Refused(Reason.TARGET_PROTOCOL, f"{self._peer} answered with too large a head")
        return event

    def _next_event(self) -> object:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise Refused(
                Reason.TARGET_PROTOCOL, f"{self._peer} did not answer in HTTP: {wording(error)}"
            ) from None

    async def _receive_body_event(self) -> h11.Data | h11.EndOfMessage:
        try:
            return await self._next_body_event()
        except h11.RemoteProtocolError as error:
            raise Refused(
                Reason.TARGET_PROTOCOL, f"{self._peer} broke off its answer: {wording(error)}"
            ) from None

    def finish(self) -> bool:
        """Whether the connection can carry another request; readies it if so."""
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        unasked, has_ended = self._h11.trailing_data
        return not unasked and not has_ended


async def exchange(
    connection: HttpClientConnection, request: h11.Request, body: bytes = b"", *, max_body_bytes: int
) -> tuple[h11.Response | h11.InformationalResponse, bytes]:
    """Sends a request and collects the whole answer. Raises ``Refused`` if it is larger than allowed."""
    await connection.send(request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage())
    response = await connection.receive_response()
    collected = bytearray()
    async for chunk in connection.receive_body():
        collected += chunk
        if len(collected) > max_body_bytes:
            raise Refused(Reason.TARGET_PROTOCOL, f"the answer is larger than {max_body_bytes} bytes")
    return response, bytes(collected)
