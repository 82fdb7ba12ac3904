"""The server's side of one HTTP/2 connection that carries one gRPC call (RFC 9113, gRPC over HTTP/2). No I/O.

Theory of operation
1. gRPC's own server handles all connections in one thread, and its limit on frames does not hold while the
   client does not read. So one connection can stop all others. An agent needs only one call on a connection,
   which is little code. ``frame_budget.py`` charges each frame before it is handled.
2. ``receive`` takes the client's bytes, in pieces of any size, and returns the complete messages. Within a
   large message ``space`` lends memory to the caller, who writes the next bytes there. ``send``
   takes one message; the next may follow when ``can_send``. ``take_output`` returns the bytes to write.
3. Receive windows are large and are refilled as messages are taken, because the session has its own credit. A
   client that sends beyond its window is at fault.
4. Headers come once. A second call on a connection is an error, as are all connection errors of RFC 9113. The
   caller closes the connection without GOAWAY, because no gRPC client makes such an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

from tunnel_core.http2.frame_budget import FrameBudget
from tunnel_core.http2.messages import MIN_SPACE, PREFIX_BYTES, Http2Error, MessageAssembler
from tunnel_core.limits import KIB, MIB
from tunnel_core.wire.frames import Payload

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 3, 4, 5, 6

RECEIVE_WINDOW = 16 * MIB
"""The size of gRPC's look-ahead: 340 MiB/s at a round trip of 50 ms."""
_REFILL_BYTES = 1 * MIB
_MAX_FRAME = 4 * MIB
_MAX_CONTROL = 16 * KIB
_MAX_BLOCK = 4 * KIB
"""Bytes of the header block of a call. About 300 are needed."""
_MAX_HEADERS = 16 * KIB
"""Bytes of names and values of the decoded block, because HPACK can name a long value by one byte again and
again."""
_DEFAULT_WINDOW, _MAX_WINDOW = 65_535, 2**31 - 1
_DEFAULT_FRAME = 16 * KIB
_HEAD_BYTES = 9
_HEAD = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")

OK, RESOURCE_EXHAUSTED, UNIMPLEMENTED = 0, 8, 12
"""Status codes of gRPC."""


_ANSWER = ((b":status", b"200"), (b"content-type", b"application/grpc"))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode one frame."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def _data_head(size: int, stream: int) -> bytes:
    """Encode the head of a DATA frame."""
    return _HEAD.pack(size >> 8, size & 0xFF, DATA, 0, stream)


def _encode_block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode header fields as literals without a table, so that a connection needs no encoder of its own."""
    return Encoder().encode([NeverIndexedHeaderTuple(*header) for header in headers], huffman=False)


def _greeting() -> bytes:
    """Return the server's preface: its SETTINGS, and the window of the connection."""
    settings = (
        (MAX_CONCURRENT_STREAMS, 1),
        (INITIAL_WINDOW_SIZE, RECEIVE_WINDOW),
        (MAX_FRAME_SIZE, _MAX_FRAME),
        (MAX_HEADER_LIST_SIZE, _MAX_BLOCK),
    )
    payload = b"".join(_SETTING.pack(*setting) for setting in settings)
    increment = (RECEIVE_WINDOW - _DEFAULT_WINDOW).to_bytes(4, "big")
    return frame(SETTINGS, 0, 0, payload) + frame(WINDOW_UPDATE, 0, 0, increment)


class Http2Call:
    """One connection. ``path`` is the path of the call that is served; ``now`` is in monotonic seconds.

    After ``FloodError`` or ``Http2Error`` the connection must be closed.
    """

    def __init__(self, path: bytes, max_message_bytes: int, now: float) -> None:
        self.has_call = False
        """Whether the call has started."""
        self.ended = ""
        """The cause of the call's end; empty until then."""
        self.has_finished = False
        """Whether the server has ended the call."""
        self.holds_window = False
        """Whether the refill of receive windows is suspended."""
        self._path = path
        self._budget = FrameBudget(now)
        self._assembler = MessageAssembler(max_message_bytes, self._budget)
        self._preface = PREFACE  # the part that has not arrived yet
        self._buffer = b""  # the start of a frame
        self._data_left = 0  # bytes of the present DATA frame
        self._padding_left = 0
        self._stream = 0
        self._block: bytes | None = None  # the start of a header block
        self._block_ends_stream = False
        self._window = RECEIVE_WINDOW  # bytes that the client may still send
        self._unrefilled = 0
        self._connection_window = self._stream_window = self._initial_window = _DEFAULT_WINDOW
        self._frame_size = _DEFAULT_FRAME
        self._pending = memoryview(b"")  # the rest of a message, which waits for windows
        self._is_answered = False
        self._output: list[Payload] = [_greeting()]

    # Receiving.

    def receive(self, data: bytes, now: float) -> list[bytes]:
        """Return the messages that ``data`` completes. Raises ``FloodError`` and ``Http2Error``."""
        messages: list[bytes] = []
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        at, size, view = self._skip_preface(data) if self._preface else 0, len(data), memoryview(data)
        while at < size:
            if self._data_left:
                taken = min(self._data_left, size - at)
                self._data_left -= taken
                self._assembler.add(view[at : at + taken], size, now, messages)
            elif self._padding_left:
                taken = min(self._padding_left, size - at)
                self._padding_left -= taken
            else:
                taken = self._start_frame(data, at, now)
                if not taken:
                    self._buffer = data[at:]
                    break
            at += taken
        if self._unrefilled >= _REFILL_BYTES and not self.holds_window:
            self._refill()
        return messages

    def space(self) -> memoryview | None:
        """Return memory for the next bytes, or None if ``receive`` must take them.

        Release it before ``filled``.
        """
        return self._assembler.space(self._data_left) if self._data_left >= MIN_SPACE else None

    def filled(self, size: int) -> list[bytes]:
        """Note that ``size`` bytes at the start of ``space`` arrived. Return messages as ``receive`` does."""
        messages: list[bytes] = []
        self._data_left -= size
        self._assembler.filled(size, messages)
        if self._unrefilled >= _REFILL_BYTES and not self.holds_window:
            self._refill()
        return messages

    def _skip_preface(self, data: bytes) -> int:
        part = self._preface[: len(data)]
        if not data.startswith(part):
            raise Http2Error("the connection does not start with the HTTP/2 preface")
        self._preface = self._preface[len(part) :]
        return len(part)

    def _start_frame(self, data: bytes, at: int, now: float) -> int:
        """Return the bytes taken: the head of DATA, a whole other frame, or 0 if more must arrive first."""
        if len(data) - at < _HEAD_BYTES:
            return 0
        head: tuple[int, int, int, int, int] = _HEAD.unpack_from(data, at)
        length, kind, flags, stream = head[0] << 8 | head[1], head[2], head[3], head[4] & _MAX_WINDOW
        if self._block is not None and kind != CONTINUATION:
            raise Http2Error("a header block is not complete")
        if kind == DATA:
            return self._start_data(data, at, (length, flags, stream), now)
        if length > _MAX_CONTROL:
            raise Http2Error("a frame is too large")
        if len(data) - at < _HEAD_BYTES + length:
            return 0
        if kind == WINDOW_UPDATE:
            self._budget.charge_flow(now)
        else:
            self._budget.charge_control(length, now)
        payload = data[at + _HEAD_BYTES : at + _HEAD_BYTES + length]
        self._handle(kind, flags, stream, payload)
        return _HEAD_BYTES + length

    def _start_data(self, data: bytes, at: int, head: tuple[int, int, int], now: float) -> int:
        length, flags, stream = head
        if not self._is_open(stream):
            raise Http2Error("DATA for a stream that is not open")
        if length > _MAX_FRAME:
            raise Http2Error("a frame is too large")
        padding, taken = 0, _HEAD_BYTES
        if flags & PADDED:
            if len(data) - at <= _HEAD_BYTES:
                return 0
            padding, taken = data[at + _HEAD_BYTES], _HEAD_BYTES + 1
            if padding >= length:
                raise Http2Error("a frame has invalid padding")
        self._data_left = length - padding - (taken - _HEAD_BYTES)
        self._padding_left = padding
        if not self._data_left:
            self._budget.charge_control(length, now)
        elif self._data_left < PREFIX_BYTES:
            self._budget.charge_flow(now)
        self._budget.note_moved(self._data_left)
        self._window -= length
        self._unrefilled += length
        if self._window < 0:
            raise Http2Error("the client sent more than its window allows")
        if flags & END_STREAM:
            self.ended = self.ended or "the agent closed the call"
        return taken

    def _handle(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            self._start_call(flags, stream, payload)
        elif kind == CONTINUATION:
            self._continue_block(flags, stream, payload)
        elif kind == SETTINGS:
            if not flags & ACK:
                self._apply_settings(payload)
        elif kind == WINDOW_UPDATE:
            self._open_window(stream, payload)
        elif kind == PING:
            if len(payload) != 8:
                raise Http2Error("a PING does not have 8 bytes")
            if not flags & ACK:
                self._output.append(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            if not self._is_open(stream):
                raise Http2Error("RST_STREAM for a stream that is not open")
            self.ended = self.ended or "the agent cancelled the call"
        elif kind == PUSH_PROMISE:
            raise Http2Error("the client sent PUSH_PROMISE")

    def _is_open(self, stream: int) -> bool:
        """Whether the client may send on ``stream``, also until it knows that its call was refused."""
        return stream == self._stream and (self.has_call or self.has_finished)

    def _start_call(self, flags: int, stream: int, payload: bytes) -> None:
        if self._stream or not stream & 1:
            raise Http2Error("a second call on one connection")
        self._stream = stream
        begin, end = 0, len(payload)
        if flags & PADDED:
            begin, end = 1, end - (payload[0] if payload else 0)
        if flags & WITH_PRIORITY:
            begin += 5
        if begin > end:
            raise Http2Error("a frame has invalid padding")
        self._block, self._block_ends_stream = b"", bool(flags & END_STREAM)
        self._continue_block(flags, stream, payload[begin:end])

    def _continue_block(self, flags: int, stream: int, payload: bytes) -> None:
        if self._block is None or stream != self._stream:
            raise Http2Error("CONTINUATION without HEADERS")
        self._block += payload
        if len(self._block) > _MAX_BLOCK:
            raise Http2Error("the headers are too large")
        if flags & END_HEADERS:
            block, self._block = self._block, None
            self._check_headers(block)

    def _check_headers(self, block: bytes) -> None:
        try:
            headers = dict(Decoder(_MAX_HEADERS).decode(block, raw=True))
        except HPACKError as error:
            raise Http2Error(f"the headers cannot be decoded: {error}") from None
        is_ours = headers.get(b":path") == self._path and headers.get(b":method") == b"POST"
        if not is_ours or not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            self.finish(UNIMPLEMENTED, "Method not found!")
            return
        self.has_call = True
        if self._block_ends_stream:
            self.ended = "the agent closed the call"

    def _apply_settings(self, payload: bytes) -> None:
        if len(payload) % _SETTING.size:
            raise Http2Error("SETTINGS have an invalid length")
        for name, value in _SETTING.iter_unpack(payload):
            if name == INITIAL_WINDOW_SIZE:
                if value > _MAX_WINDOW:
                    raise Http2Error("a window is too large")
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif name == MAX_FRAME_SIZE:
                if not _DEFAULT_FRAME <= value < 1 << 24:
                    raise Http2Error("MAX_FRAME_SIZE is out of range")
                self._frame_size = value
        self._output.append(frame(SETTINGS, ACK, 0))
        self._push_pending()

    def _open_window(self, stream: int, payload: bytes) -> None:
        increment = int.from_bytes(payload, "big") & _MAX_WINDOW
        if len(payload) != 4 or not increment:
            raise Http2Error("WINDOW_UPDATE without an increment")
        if not stream:
            self._connection_window += increment
        elif stream == self._stream:
            self._stream_window += increment
        else:
            raise Http2Error("WINDOW_UPDATE for a stream that is not open")
        if max(self._connection_window, self._stream_window) > _MAX_WINDOW:
            raise Http2Error("a window is too large")
        if self._pending:
            self._push_pending()

    def _refill(self) -> None:
        """Return taken bytes to the client's windows."""
        increment = self._unrefilled.to_bytes(4, "big")
        self._output.append(frame(WINDOW_UPDATE, 0, 0, increment))
        self._output.append(frame(WINDOW_UPDATE, 0, self._stream, increment))
        self._window += self._unrefilled
        self._unrefilled = 0

    # Sending.

    @property
    def can_send(self) -> bool:
        """Whether ``send`` may be called: the call is open, and no message waits for the client's windows."""
        return self.has_call and not self._pending and not self.has_finished

    def send(self, message: bytes) -> None:
        """Send one message as far as the client's windows allow. The rest follows when they open."""
        if not self._is_answered:
            self._answer()
        prefix, size = b"\0" + len(message).to_bytes(4, "big"), len(message) + PREFIX_BYTES
        self._budget.note_moved(size)
        if size <= min(self._frame_size, self._connection_window, self._stream_window):
            self._take_window(size)
            self._output += _data_head(size, self._stream) + prefix, message
        else:
            self._pending = memoryview(prefix + message)
            self._push_pending()

    def _push_pending(self) -> None:
        while self._pending:
            size = min(len(self._pending), self._frame_size, self._connection_window, self._stream_window)
            if size <= 0:
                return
            self._take_window(size)
            self._output += _data_head(size, self._stream), self._pending[:size]
            self._pending = self._pending[size:]

    def _take_window(self, size: int) -> None:
        self._connection_window -= size
        self._stream_window -= size

    def _answer(self) -> None:
        self._is_answered = True
        self._output.append(frame(HEADERS, END_HEADERS, self._stream, _encode_block(_ANSWER)))

    def finish(self, status: int, message: str = "") -> None:
        """End the call with a gRPC status, unless part of a message waits. Idempotent."""
        if self.has_finished or self._pending or not self._stream:
            return
        self.has_finished = True
        fields = [(b"grpc-status", str(status).encode()), (b"grpc-message", message.encode())]
        block = _encode_block(fields if self._is_answered else [*_ANSWER, *fields])
        self._output.append(frame(HEADERS, END_HEADERS | END_STREAM, self._stream, block))

    def take_output(self) -> bytes:
        """Return the bytes to write, once. That is the only copy of a message that needs no second frame."""
        output, self._output = self._output, []
        return b"".join(output)
