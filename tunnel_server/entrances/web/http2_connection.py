"""HTTP/2 towards browsers, with ``h2`` for the protocol.

Theory of operation
1. One task reads the connection. It never waits for a request, so a stalled request stalls no other one. It
   waits while the browser does not read and too many answers to control frames are queued.
2. Each request has its own task. Requests take turns at the socket, one frame each, in the order of asking.
3. ``http2_frames`` bounds the frames, and ``http2_heads`` checks each head. A malformed head resets its
   stream; a flood, or a violation of HTTP/2, ends the connection.
4. What a request's target has not taken stays in the window of its stream. The window of the connection opens
   on arrival, because a window that all streams share would let one stalled upload stop the others.
5. A browser that takes nothing of an answer for ``STALL_SECONDS`` loses the request, or the connection.
6. The end of the connection ends its requests: each learns that its user has left.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable

import h2.errors
import h2.events
import h2.exceptions
import trio

from tunnel_core.http.server import HeadLimits
from tunnel_core.http2.frame_budget import FloodError
from tunnel_core.http2.read_sizes import USUAL_READ, next_read
from tunnel_core.limits import KIB, MIB
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.nowait import NowaitStream
from tunnel_core.streams.tls_errors import RecordFlood
from tunnel_server.entrances.web.http2_browser import Http2Browser
from tunnel_server.entrances.web.http2_frames import MAX_FRAME_BYTES, FrameMeter
from tunnel_server.entrances.web.http2_heads import MalformedHead, request_of, trailers_of
from tunnel_server.entrances.web.http2_protocol import (
    CONNECTION_WINDOW,
    MAX_STREAMS,
    make_protocol,
    start_protocol,
    with_key,
)
from tunnel_server.reverse_proxy.messages import Headers

_MAX_TASKS = 2 * MAX_STREAMS + 28
"""Tasks of requests. That of a reset request ends within 0.1 s (``WATCH_SECONDS`` of the exchange), so a
browser that leaves one full page for another has those of both."""
_WINDOW_GROWTH = 4 * MIB
"""Bytes by which the windows of all requests of one connection may grow."""
STALL_SECONDS = 300.0
"""Time in which a browser takes nothing of an answer before its request ends."""
_LOSS_SECONDS = 30.0
"""Time for a request to end by itself after its user has left."""
_MAX_QUEUED = 64 * KIB
"""Bytes that wait for a browser that does not read. Beyond them nothing is received from it."""
_PIECES_AT_ONCE = 8
"""Frames that one request sends before other tasks run."""
_CLOSE_SECONDS = 1.0
_MAX_SENTENCE = 200
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)

_log = logging.getLogger("qanat.http")


class Http2Connection:
    """One connection of a browser at the address ``source``, which TLS has agreed to use HTTP/2 on.

    ``handle`` answers one request and raises nothing but ``trio.BrokenResourceError``. ``on_refused`` is
    called for a request that is answered here.
    """

    def __init__(
        self,
        stream: NowaitStream,
        limits: HeadLimits,
        source: str,
        handle: Callable[[Http2Browser], Awaitable[None]],
        on_refused: Callable[[Refused], None],
    ) -> None:
        self._stream = stream
        self._limits = limits
        self._source = source
        self._handle = handle
        self._on_refused = on_refused
        max_decoded = 2 * limits.max_head_bytes + 32 * limits.max_headers  # up to this size it is a 431
        self._meter = FrameMeter(max_decoded, trio.current_time())
        self._h2 = make_protocol(max_decoded)
        self._streams: dict[int, Http2Browser] = {}
        self._tasks = 0
        self._growth_left = _WINDOW_GROWTH
        self._unopened = 0  # bytes received that the connection's window does not count yet
        self._queued = bytearray()  # while the socket is blocked
        self.is_blocked = False
        """Whether the socket takes nothing now, so that whatever is sent waits in memory."""
        self._held: set[Http2Browser] = set()  # those whose head waits for the socket
        self._blocked, self._unblocked = trio.Event(), trio.Event()
        self._turns = trio.lowlevel.ParkingLot()
        self._reading = trio.CancelScope()
        self._nursery: trio.Nursery

    async def serve(self) -> None:
        """Serve the connection to its end, and close it.

        Raises ``Refused`` with ``FRAME_FLOOD`` or ``PROTOCOL_ERROR`` if the browser caused the end.
        Cancellation resets the requests, and sends GOAWAY.
        """
        refused: tuple[Reason, str] | None = None
        try:
            async with trio.open_nursery() as background:
                background.start_soon(self._flush_blocked)
                async with trio.open_nursery() as self._nursery:
                    refused = await self._read_all()
                    self._lose_all()
                background.cancel_scope.cancel()
            with trio.move_on_after(_CLOSE_SECONDS):
                await self._stream.aclose()
        finally:
            self._say_goodbye()
            self._stream.close_nowait()
        if refused is not None:
            raise Refused(*refused)

    # Receiving.

    async def _read_all(self) -> tuple[Reason, str] | None:
        """Read to the end of the connection. Return the reason if the browser violated HTTP/2 or flooded."""
        try:
            start_protocol(self._h2)
            self.write()
            with self._reading:
                self._reading.deadline = trio.current_time() + self._limits.head_seconds
                await self._read()
        except (FloodError, RecordFlood) as flood:
            self._say_goodbye(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
            return Reason.FRAME_FLOOD, f"{flood}; the server closed the connection"
        except h2.exceptions.DenialOfServiceError:
            self.write()  # the GOAWAY that h2 has queued
            return Reason.FRAME_FLOOD, "a head is too large; the server closed the connection"
        except h2.exceptions.ProtocolError as error:
            self.write()
            sentence = " ".join(str(error).split())[:_MAX_SENTENCE]
            return Reason.PROTOCOL_ERROR, f"HTTP/2 was violated: {sentence}; the server closed the connection"
        except _BROKEN:
            return None
        if self._reading.cancelled_caught:
            self._say_goodbye()  # idle, or the browser takes nothing
        return None

    async def _read(self) -> None:
        size = USUAL_READ
        while data := await self._stream.receive_some(size):
            started = trio.current_time()
            self._meter.add(bytes(data), started)
            for event in self._h2.receive_data(data):
                if isinstance(event, h2.events.ConnectionTerminated):
                    return
                self._take(event)
            self._open_connection_window()
            self.write()
            size = next_read(size, len(data), trio.current_time() - started)
            while self.is_blocked and len(self._queued) > _MAX_QUEUED:
                await self._unblocked.wait()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._begin(event.stream_id, event.headers, is_end=event.stream_ended is not None)
        elif isinstance(event, h2.events.DataReceived):
            self._unopened += event.flow_controlled_length
            if browser := self._streams.get(event.stream_id):
                browser.feed(event.data, event.flow_controlled_length)
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            for browser in self._streams.values():
                browser.note_window()
        elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.TrailersReceived):
            self._take_end(event, self._streams.get(event.stream_id))

    def _take_end(self, event: h2.events.Event, browser: Http2Browser | None) -> None:
        if browser is None:
            return
        if isinstance(event, h2.events.StreamEnded):
            browser.feed_end()
        elif isinstance(event, h2.events.StreamReset):
            self._lose(browser)
        elif isinstance(event, h2.events.TrailersReceived):
            try:
                browser.trailers = trailers_of(event.headers)
            except MalformedHead:
                browser.abort(Reason.BAD_REQUEST)
                self._meter.charge_reset(trio.current_time())

    def _open_connection_window(self) -> None:
        if self._unopened >= CONNECTION_WINDOW // 4:
            self._h2.increment_flow_control_window(self._unopened)
            self._unopened = 0

    def _lose_all(self) -> None:
        for browser in self._streams.values():
            self._lose(browser)
        self._turns.unpark_all()

    def _lose(self, browser: Http2Browser) -> None:
        browser.lose()
        browser.scope.deadline = trio.current_time() + _LOSS_SECONDS

    # Requests.

    def _begin(self, stream_id: int, fields: Headers, *, is_end: bool) -> None:
        if self._tasks >= _MAX_TASKS:
            self._reset_caused(stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        try:
            request = request_of(
                fields,
                is_end=is_end,
                scheme=b"https",
                source=self._source,
                max_head_bytes=self._limits.max_head_bytes,
                max_headers=self._limits.max_headers,
            )
        except MalformedHead:
            self._reset_caused(stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            return
        except Refused as refused:
            self._refuse(stream_id, refused)
            return
        browser = Http2Browser(self, stream_id, with_key(request), self._limits.body_idle_seconds)
        if is_end:
            browser.feed_end()
        self._streams[stream_id] = browser
        self._tasks += 1
        self._reading.deadline = float("inf")
        self._nursery.start_soon(self._serve_request, browser)

    def _refuse(self, stream_id: int, refused: Refused) -> None:
        self._on_refused(refused)
        word = refused.reason.word.encode()
        fields = [(b":status", str(refused.reason.status).encode()), (b"qanat-reason", word)]
        with contextlib.suppress(trio.BrokenResourceError):  # reset in the same read as its head
            self.send_headers(stream_id, fields, is_end=True)
        self.reset(stream_id, is_complete=True)

    async def _serve_request(self, browser: Http2Browser) -> None:
        try:
            with browser.scope:
                await self._handle(browser)
        except _BROKEN:
            pass  # the browser has left
        except Exception:
            _log.exception("a request handler failed")
        except BaseExceptionGroup as group:
            if group.split(_BROKEN)[1] is not None:
                raise
        finally:
            self._end(browser)

    def _end(self, browser: Http2Browser) -> None:
        """Forget a request whose task ends. Cancelled before its answer is complete, its stream stays."""
        self._tasks -= 1
        self._growth_left += browser.window_growth
        if not browser.is_lost and not (browser.is_answer_complete and browser.has_input_ended):
            self.reset(browser.stream_id, is_complete=browser.is_answer_complete)
        self._streams.pop(browser.stream_id, None)
        if not self._streams:
            self._reading.deadline = trio.current_time() + self._limits.idle_seconds

    # Sending.

    def send_headers(self, stream_id: int, fields: Headers, *, is_end: bool) -> None:
        """Queue a head or trailers. Raises ``trio.BrokenResourceError``."""
        try:
            self._h2.send_headers(stream_id, fields, end_stream=is_end)
        except h2.exceptions.ProtocolError as error:
            raise trio.BrokenResourceError("the browser has reset the stream") from error

    async def send_data(self, browser: Http2Browser, data: bytes, *, is_end: bool) -> None:
        """Send data when the windows and the other requests allow. Raises ``trio.BrokenResourceError``."""
        view, pieces = memoryview(data), 0
        while True:
            sent = await self._send_piece(browser, view, is_end=is_end)
            view, pieces = view[sent:], pieces + 1
            if not view:
                return
            if not pieces % _PIECES_AT_ONCE:
                await trio.lowlevel.checkpoint()

    async def _send_piece(self, browser: Http2Browser, view: memoryview, *, is_end: bool) -> int:
        """Send one frame, and return the bytes in it."""
        while True:
            await self._wait_window(browser, len(view))
            if self.is_blocked or self._turns:
                await self._turns.park()
            try:
                size = min(len(view), self._window_of(browser), MAX_FRAME_BYTES)
                if size or not view:
                    self._h2.send_data(
                        browser.stream_id, view[:size], end_stream=is_end and size == len(view)
                    )
                    self._meter.note_sent(1)
                    self.write()
                    return size
            except h2.exceptions.ProtocolError as error:
                raise trio.BrokenResourceError("the browser has reset the stream") from error
            finally:
                if not self.is_blocked:
                    self._turns.unpark()

    async def _wait_window(self, browser: Http2Browser, needed: int) -> None:
        while needed and self._window_of(browser) <= 0:
            with trio.move_on_after(STALL_SECONDS) as stall:
                await browser.wait_window()
            if stall.cancelled_caught:
                browser.abort(Reason.IDLE_TIMEOUT)
        if browser.is_lost:
            raise trio.BrokenResourceError("the browser has reset the stream")

    def _window_of(self, browser: Http2Browser) -> int:
        """Return the bytes that this stream may send now. Raises ``trio.BrokenResourceError``."""
        if browser.is_lost:
            raise trio.BrokenResourceError("the browser has reset the stream")
        return self._h2.local_flow_control_window(browser.stream_id)

    async def wait_unblocked(self, browser: Http2Browser) -> None:
        """Wait while the socket is blocked. Raises ``trio.BrokenResourceError``."""
        while self.is_blocked and not browser.is_lost:
            self._held.add(browser)
            try:
                await browser.wait_window()
            finally:
                self._held.discard(browser)
        if browser.is_lost:
            raise trio.BrokenResourceError("the browser has reset the stream")

    def write(self) -> None:
        """Send what is queued, as far as the socket takes it."""
        self._queued += self._h2.data_to_send()
        if self.is_blocked or not self._queued:
            return
        data, self._queued = self._queued, bytearray()
        try:
            self.is_blocked = not self._stream.send_nowait(data)
        except _BROKEN:
            self._reading.cancel()
            self._lose_all()
        if self.is_blocked:
            self._unblocked = trio.Event()
            self._blocked.set()

    async def _flush_blocked(self) -> None:
        """Write the rest whenever the socket did not take all."""
        while True:
            await self._blocked.wait()
            self._blocked = trio.Event()
            with trio.move_on_after(STALL_SECONDS) as stall, contextlib.suppress(*_BROKEN):
                await self._stream.flush()
            if stall.cancelled_caught:
                self._lose_all()
                self._reading.cancel()
                return
            self.is_blocked = False
            self._unblocked.set()
            self.write()
            for browser in self._held:
                browser.note_window()
            if not self.is_blocked:
                self._turns.unpark()

    def open_window(self, stream_id: int, size: int) -> None:
        """Let the browser send ``size`` more bytes on a stream."""
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.increment_flow_control_window(size, stream_id)
            self.write()

    def take_growth(self, size: int) -> int:
        """Return how many of ``size`` bytes a window may grow."""
        growth = max(0, min(size, self._growth_left))
        self._growth_left -= growth
        return growth

    def reset(self, stream_id: int, *, is_complete: bool) -> None:
        """Reset the stream. ``is_complete``: the answer is whole, and only the request's rest is unwanted."""
        codes = h2.errors.ErrorCodes
        self._reset(stream_id, codes.NO_ERROR if is_complete else codes.INTERNAL_ERROR)

    def _reset_caused(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        """Reset a stream that the browser made useless. Raises ``FloodError``."""
        self._reset(stream_id, code)
        self._meter.charge_reset(trio.current_time())

    def _reset(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.reset_stream(stream_id, code)
        self.write()

    def _say_goodbye(self, code: h2.errors.ErrorCodes = h2.errors.ErrorCodes.NO_ERROR) -> None:
        """Send GOAWAY, if the socket takes it and none was sent."""
        with contextlib.suppress(h2.exceptions.ProtocolError, *_BROKEN):
            self._h2.close_connection(code)
            self.write()
