"""One request of a browser over HTTP/2: the adapter between a stream of the connection and the seam.

The body waits in memory until the target takes it, bounded by the window of the stream. So a slow target
stalls its own upload, and no other one. An answer waits for the window that the browser opens for the stream,
and for the turn of the stream at the socket.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Protocol

import trio

from tunnel_core.limits import KIB, MIB
from tunnel_core.reasons import Reason, Refused
from tunnel_server.entrances.web.http2_heads import checked_fields, fields_of
from tunnel_server.reverse_proxy.messages import (
    BODILESS,
    AnswerEnd,
    AnswerEvent,
    AnswerHead,
    BrowserRequest,
    Headers,
)

INITIAL_WINDOW = 64 * KIB
"""Bytes of a request's body that a browser may send before the target took any."""
MAX_WINDOW = 1 * MIB
"""The same for a stream whose target keeps up. Each growth doubles the window."""
# RFC 8441 section 5: headers of a handshake over HTTP/1.1.
_OF_HANDSHAKE = frozenset({b"upgrade", b"connection", b"sec-websocket-accept"})


class StreamOwner(Protocol):
    """The connection, as far as one stream needs it."""

    def send_headers(self, stream_id: int, fields: Headers, *, is_end: bool) -> None:
        """Queue a head or trailers. Raises ``trio.BrokenResourceError``."""

    async def send_data(self, browser: Http2Browser, data: bytes, *, is_end: bool) -> None:
        """Send data when the windows and the other streams allow. Raises ``trio.BrokenResourceError``."""

    @property
    def is_blocked(self) -> bool:
        """Whether the socket takes nothing now, so that whatever is sent waits in memory."""

    async def wait_unblocked(self, browser: Http2Browser) -> None:
        """Wait while the socket is blocked. Raises ``trio.BrokenResourceError``."""

    def write(self) -> None:
        """Send what is queued, as far as the socket takes it."""

    def open_window(self, stream_id: int, size: int) -> None:
        """Let the browser send ``size`` more bytes on a stream."""

    def take_growth(self, size: int) -> int:
        """Return how many of ``size`` bytes a window may grow."""

    def reset(self, stream_id: int, *, is_complete: bool) -> None:
        """Reset the stream. ``is_complete``: the answer is whole, and only the request's rest is unwanted."""


class Http2Browser:
    """The stream ``stream_id``, whose head is ``request``. ``body_idle_seconds`` bounds a silent upload."""

    def __init__(
        self, owner: StreamOwner, stream_id: int, request: BrowserRequest, body_idle_seconds: float
    ) -> None:
        self.stream_id = stream_id
        self.request = request
        self.trailers: Headers = []
        self.has_answered = False
        self.has_input_ended = False
        self.is_answer_complete = False
        self.window_growth = 0
        """Bytes by which the window grew, which the connection gets back at the end."""
        self.scope = trio.CancelScope()
        """The task that answers the request."""
        self._owner = owner
        self._body_idle_seconds = body_idle_seconds
        self._received = bytearray()  # in one piece: a list of 1-byte frames needs 28 times as much memory
        self._window = INITIAL_WINDOW
        self._consumed = 0  # bytes taken that the browser may not send again yet
        self._has_no_body = False  # of the answer
        self._sending = trio.Lock()
        self._left = trio.Event()
        self._readable = trio.Event()
        self._window_opened = trio.Event()

    @property
    def connection(self) -> object:
        """The browser's connection, by its identity alone."""
        return self._owner

    # From the connection.

    def feed(self, data: bytes, size: int) -> None:
        """Keep a piece of the body, which took ``size`` bytes of the window: ``data`` and padding."""
        self._received += data
        self._consumed += size - len(data)
        self._readable.set()

    def feed_end(self) -> None:
        """Note the end of the request."""
        self.has_input_ended = True
        self._readable.set()

    def lose(self) -> None:
        """Note that the browser reset the stream, or that the connection is lost."""
        self._left.set()
        self._readable.set()
        self._window_opened.set()

    def note_window(self) -> None:
        """Note that the browser may have opened a window, or that the socket takes bytes again."""
        self._window_opened.set()

    @property
    def is_lost(self) -> bool:
        """Whether the browser cannot receive any more of the answer."""
        return self._left.is_set()

    async def wait_window(self) -> None:
        """Wait until the window may have opened, the socket takes bytes again, or the stream is lost."""
        if not self.is_lost:
            self._window_opened = trio.Event()
            await self._window_opened.wait()

    # The seam.

    async def receive_body(self) -> bytes:
        """Return the next piece of the body, ``b""`` at its end."""
        with trio.move_on_after(self._body_idle_seconds):
            try:
                return await self.receive()
            except trio.BrokenResourceError:
                raise Refused(
                    Reason.USER_LEFT, "the browser reset the request in the middle of its body"
                ) from None
        raise Refused(Reason.IDLE_TIMEOUT, "the request body stopped arriving")

    async def receive(self) -> bytes:
        """Return received bytes, ``b""`` at the end. Raises ``trio.BrokenResourceError``."""
        while not self._received:
            if self.is_lost:
                raise trio.BrokenResourceError("the browser reset the stream")
            if self.has_input_ended:
                await trio.lowlevel.checkpoint()
                return b""
            self._readable = trio.Event()
            await self._readable.wait()
        data, self._received = bytes(self._received), bytearray()
        self._consumed += len(data)
        self._open_window()
        return data

    def _open_window(self) -> None:
        if self.has_input_ended or self._consumed < self._window // 2:
            return
        growth = self._owner.take_growth(min(self._window, MAX_WINDOW - self._window))
        size, self._consumed = self._consumed + growth, 0
        self._window += growth
        self.window_growth += growth
        self._owner.open_window(self.stream_id, size)

    async def send(self, *events: AnswerEvent) -> None:
        """Send the events, the heads and the first data in one write."""
        async with self._sending:
            await self._send(*events)

    async def _send(self, *events: AnswerEvent) -> None:
        for event, following in zip(events, [*events[1:], None], strict=True):
            is_end = isinstance(following, AnswerEnd) and not following.trailers
            if isinstance(event, AnswerHead):
                await self._send_head(event, is_end=is_end)
            elif isinstance(event, AnswerEnd):
                await self._send_end(event.trailers)
            elif not self._has_no_body and event:
                await self._owner.send_data(self, event, is_end=is_end)
                self.is_answer_complete = is_end
        self._owner.write()

    async def _send_head(self, head: AnswerHead, *, is_end: bool) -> None:
        """Send a head. No window bounds heads, so they wait for the socket; most interim ones are dropped."""
        if head.status < 200:
            is_dropped = self._owner.is_blocked and head.status != 100
            if head.status != 101 and not is_dropped:  # HTTP/2 has no 101
                self._owner.send_headers(self.stream_id, fields_of(head), is_end=False)
            return
        await self._owner.wait_unblocked(self)
        self.has_answered = True
        self._has_no_body = self.request.method == b"HEAD" or head.status in BODILESS
        is_end = is_end or self._has_no_body
        self._owner.send_headers(self.stream_id, fields_of(head), is_end=is_end)
        self.is_answer_complete = is_end

    async def _send_end(self, trailers: Sequence[tuple[bytes, bytes]]) -> None:
        if self.is_answer_complete:
            return
        if fields := checked_fields(trailers):
            await self._owner.wait_unblocked(self)
            self._owner.send_headers(self.stream_id, fields, is_end=True)
        else:
            await self._owner.send_data(self, b"", is_end=True)
        self.is_answer_complete = True

    async def switch(self, head: AnswerHead) -> tuple[trio.abc.Stream, bytes]:
        """Send the 200 of RFC 8441, and return the stream of the DATA frames."""
        headers = [(name, value) for name, value in head.headers if name.lower() not in _OF_HANDSHAKE]
        await self._owner.wait_unblocked(self)
        self.has_answered = True
        self._owner.send_headers(self.stream_id, fields_of(AnswerHead(200, headers)), is_end=False)
        self._owner.write()
        await trio.lowlevel.checkpoint()
        return Http2Tunnel(self, self._owner), b""

    def abort(self, reason: Reason) -> None:
        """Reset the stream, so that a begun answer does not look complete."""
        if not self.is_lost:
            self.lose()
            self._owner.reset(self.stream_id, is_complete=False)

    async def wait_left(self) -> None:
        """Return when the browser has reset the stream, or the connection is lost."""
        await self._left.wait()


class Http2Tunnel(trio.abc.HalfCloseableStream):
    """The raw bytes of a stream behind an accepted CONNECT."""

    def __init__(self, browser: Http2Browser, owner: StreamOwner) -> None:
        self._browser = browser
        self._owner = owner
        self._rest = b""
        self._is_closed = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._is_closed:
            raise trio.ClosedResourceError("this stream was closed here")
        if self._rest:
            await trio.lowlevel.checkpoint()
        data = self._rest or await self._browser.receive()
        size = max_bytes or len(data)
        self._rest = data[size:]
        return data[:size]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._is_closed or self._browser.is_answer_complete:
            raise trio.ClosedResourceError("the end was already sent on this stream")
        if data:
            await self._owner.send_data(self._browser, bytes(data), is_end=False)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        if not self._browser.is_answer_complete:
            await self._owner.send_data(self._browser, b"", is_end=True)
            self._browser.is_answer_complete = True

    async def aclose(self) -> None:
        """End this half, if it has not ended; the stream ends with the request."""
        self._is_closed = True
        if self._browser.is_lost:
            await trio.lowlevel.checkpoint()
            return
        with contextlib.suppress(trio.BrokenResourceError):
            await self.send_eof()

    def abort(self) -> None:
        """Reset the stream, so that the browser sees a break."""
        self._is_closed = True
        self._browser.abort(Reason.TARGET_RESET)
