"""Encode packets and decode them: plain protobuf (``proto/qanat/v1/tunnel.proto``), without its objects.

Generated classes cost a third of the hot path, and every agent 2.5 MiB for their import. So this module has
code for the packet and its frequent frames, with varints of one byte inline. All other frames use the table
in ``schema.py``. Tests compare both directions with the generated classes.

The reader accepts the bytes that protobuf accepts, with the same result (unknown fields, any order, repeats).
It is stricter in four points:

1. It bounds a message, the frames of a packet, and all fields of a packet (``FieldBudget``). So the work for
   an accepted packet grows only with its bytes, which are at most 4 MiB.
2. It refuses a known field with a wrong wire type, which protobuf would treat as unknown.
3. It refuses a frame of more than one kind, or of one kind in pieces. Only ``data`` may come in pieces.
4. It refuses a frame of the attach that is not alone in its packet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tunnel_core.limits import Limits
from tunnel_core.wire.frames import (
    Credit,
    Data,
    DataParts,
    End,
    Frame,
    Hello,
    Malformed,
    Packet,
    Payload,
    Ping,
    Pong,
    Rejected,
    Unknown,
    Use,
    Welcome,
)
from tunnel_core.wire.protobuf import (
    DELIMITED,
    MAX_FIELDS,
    SMALL,
    SMALL_END,
    SUB_MESSAGE_FIELDS,
    FieldBudget,
    WireFormatError,
    read_size,
    read_tag,
    rest_of_size,
    rest_of_tag,
    rest_of_varint,
    skip_field,
    varint,
)
from tunnel_core.wire.schema import BY_FRAME, BY_NUMBER, Message, read_fields, write_fields

_MAX_FRAMES = Limits().max_frames_per_packet
_MAX_FIELDS = Limits().max_fields_per_packet
_PACKET_FIELDS = range(_MAX_FRAMES + MAX_FIELDS)
_KNOWN = frozenset((1, 2, 3, 5, 6))
_ATTACH_FRAMES = frozenset((Hello, Welcome, Use, Rejected))

_MIN_VIEW = 4096
"""Payloads below this size are copied, because a copy is cheaper than a view, in time and memory."""
_new = tuple.__new__  # half the price of a named tuple's own constructor

_Parts: TypeAlias = list[Payload]
_FastReader: TypeAlias = Callable[[bytes, int, int], Frame | None]


# Writing. A frame in a packet is 0x1a and a length; inside are the tag of its kind, a length, and its fields.


def encode_packet(
    number: int, ack: int, frames: Sequence[Frame], arrived: int = 0, ack_immediately: bool = False
) -> bytes:
    """Return the packet as one message.

    Payloads are copied once. Raises ``ValueError`` for a negative number.
    """
    parts: _Parts = []
    if number:
        parts += b"\x08", SMALL[number] if number < SMALL_END else varint(number)
    if ack:
        parts += b"\x10", SMALL[ack] if ack < SMALL_END else varint(ack)
    for frame in frames:
        _WRITERS[type(frame)](parts, frame)
    if arrived:
        parts += b"\x2d", arrived.to_bytes(4, "little")
    if ack_immediately:
        parts.append(b"\x30\x01")
    return b"".join(parts)


def _write_data(parts: _Parts, frame: Data | DataParts) -> None:
    stream, offset = frame.stream, frame.offset
    if isinstance(frame, Data):
        pieces: Sequence[Payload] = (frame.payload,)
        size = len(frame.payload)
    else:
        pieces = frame.parts
        size = sum(map(len, pieces))
    head = b"\x08" + (SMALL[stream] if stream < SMALL_END else varint(stream))
    if offset:
        head += b"\x10" + (SMALL[offset] if offset < SMALL_END else varint(offset))
    if size:
        head += b"\x1a" + (SMALL[size] if size < SMALL_END else varint(size))
    size += len(head)
    inner = SMALL[size] if size < SMALL_END else varint(size)
    size += len(inner) + 1
    outer = SMALL[size] if size < SMALL_END else varint(size)
    parts += b"\x1a", outer, b"\x0a", inner, head, *pieces


def _write_credit(parts: _Parts, frame: Credit) -> None:
    _write_pair(parts, b"\x12", frame)


def _write_end(parts: _Parts, frame: End) -> None:
    _write_pair(parts, b"\x1a", frame)


def _write_ping(parts: _Parts, frame: Ping) -> None:
    _write_pair(parts, b"\x22", frame)


def _write_pong(parts: _Parts, frame: Pong) -> None:
    _write_pair(parts, b"\x2a", (frame.token, 0))


def _write_pair(parts: _Parts, tag: bytes, frame: tuple[int, int]) -> None:
    first, count = frame
    fields = b""
    if first:
        fields = b"\x08" + (SMALL[first] if 0 < first < SMALL_END else varint(first))
    if count:
        fields += b"\x10" + (SMALL[count] if count < SMALL_END else varint(count))
    size = len(fields)
    parts += b"\x1a", SMALL[size + 2], tag, SMALL[size], fields


def _write_by_table(parts: _Parts, frame: Any) -> None:
    message = BY_FRAME[type(frame)]
    _write_kind(parts, SMALL[message.number << 3 | DELIMITED], write_fields(frame, message.fields))


def _write_unknown(parts: _Parts, frame: Unknown) -> None:
    """Write an empty frame with that number, as a later version might. Only tests use this."""
    _write_kind(parts, varint(frame.field << 3 | DELIMITED), b"")


def _write_kind(parts: _Parts, tag: bytes, body: bytes) -> None:
    size = len(body)
    head = tag + (SMALL[size] if size < SMALL_END else varint(size))
    size += len(head)
    parts += b"\x1a", SMALL[size] if size < SMALL_END else varint(size), head, body


_WRITERS: dict[type[Any], Callable[[_Parts, Any], None]] = {
    **dict.fromkeys(BY_FRAME, _write_by_table),
    Data: _write_data,
    DataParts: _write_data,
    Credit: _write_credit,
    End: _write_end,
    Ping: _write_ping,
    Pong: _write_pong,
    Unknown: _write_unknown,
}


# Reading.


def decode_packet(data: bytes) -> Packet | Malformed:
    """Decode one packet; never raises.

    A payload of at least 4 KiB and half of ``data`` is a view into ``data``.
    """
    try:
        return _read_packet(data)
    except IndexError:
        return Malformed("truncated")
    except WireFormatError as broken:
        return Malformed(broken.args[0])
    except UnicodeDecodeError:
        return Malformed("a text is not UTF-8")


def _read_packet(data: bytes) -> Packet:
    i, number, ack, arrived, ack_immediately = 0, 0, 0, 0, False
    end = len(data)
    frames: list[Frame] = []
    budget: FieldBudget | None = None  # for frames outside the fast path
    has_attach_frame = False
    for _ in _PACKET_FIELDS:
        if i >= end:
            break
        tag = data[i]
        i += 1
        if tag > 127:
            tag, i = rest_of_tag(data, i, tag)
        if tag == 0x1A:
            size = data[i]
            i += 1
            if size > 127:
                size, i = rest_of_size(data, i, size)
            stop = i + size
            if stop > end:
                raise WireFormatError("truncated")
            frame = _read_fast(data, i, stop)
            if frame is None:
                budget = budget or FieldBudget(_MAX_FIELDS)
                frame = _read_frame(data, i, stop, budget)
                has_attach_frame = has_attach_frame or type(frame) in _ATTACH_FRAMES
            frames.append(frame)
            if has_attach_frame and len(frames) > 1:
                _check_attach_frames(frames)
            i = stop
        elif tag == 0x2D:
            arrived = int.from_bytes(data[i : i + 4], "little")
            i += 4
        elif tag in (0x08, 0x10, 0x30):
            value = data[i]
            i += 1
            if value > 127:
                value, i = rest_of_varint(data, i, value)
            if tag == 0x08:
                number = value
            elif tag == 0x10:
                ack = value
            else:
                ack_immediately = value != 0
        else:
            budget = budget or FieldBudget(_MAX_FIELDS)
            i = skip_field(data, i, tag, _KNOWN, budget)
    if i != end or len(frames) > _MAX_FRAMES:
        raise WireFormatError("truncated" if i > end else "too many frames or fields")
    return _new(Packet, (number, ack, frames, arrived, ack_immediately))


def _check_attach_frames(frames: Sequence[Frame]) -> None:
    """Refuse attach frames with others, except a rejection right behind a welcome, as older servers send."""
    if [type(frame) for frame in frames] != [Welcome, Rejected]:
        raise WireFormatError("a frame of the attach is not alone in its packet")


# The fast path reads frames with exactly one field, whose fields are in the order in which the encoder writes
# them.


def _read_fast(data: bytes, i: int, end: int) -> Frame | None:
    """Return a frequent frame in the encoder's own form; None for other frames and forms."""
    try:
        reader = _FAST_READERS.get(data[i])
        if reader is None:
            return None
        size = data[i + 1]
        i += 2
        if size > 127:
            size, i = rest_of_size(data, i, size)
        return reader(data, i, end) if i + size == end else None
    except IndexError:
        return None  # truncated, or without the last field; the table decides


def _read_data(data: bytes, i: int, end: int) -> Data | None:
    stream = offset = 0
    if data[i] == 0x08:
        stream = data[i + 1]
        i += 2
        if stream > 127:
            stream, i = rest_of_varint(data, i, stream)
    if data[i] == 0x10:
        offset = data[i + 1]
        i += 2
        if offset > 127:
            offset, i = rest_of_varint(data, i, offset)
    if data[i] == 0x1A:
        size = data[i + 1]
        i += 2
        if size > 127:
            size, i = rest_of_size(data, i, size)
        if i + size == end:
            is_large = size >= _MIN_VIEW and size + size >= len(data)
            payload = memoryview(data)[i:end] if is_large else data[i:end]
            return _new(Data, (stream, offset, payload))
    return None


def _read_pair(kind: type[Any]) -> _FastReader:
    """Return the reader of a kind that has two numbers."""

    def read(data: bytes, i: int, end: int) -> Frame | None:
        if data[i] != 0x08:
            return None
        first = data[i + 1]
        i += 2
        if first > 127:
            first, i = rest_of_varint(data, i, first)
        if data[i] != 0x10:
            return None
        second = data[i + 1]
        i += 2
        if second > 127:
            second, i = rest_of_varint(data, i, second)
        return _new(kind, (first, second)) if i == end else None

    return read


_FAST_READERS: dict[int, _FastReader] = {
    BY_FRAME[Data].number << 3 | DELIMITED: _read_data,
    **{BY_FRAME[kind].number << 3 | DELIMITED: _read_pair(kind) for kind in (Credit, End, Ping)},
}


# The table reads all other frames.


def _read_frame(data: bytes, i: int, end: int, budget: FieldBudget) -> Frame:
    """Read one frame of any kind, which nearly always has exactly one field."""
    if end - i > 1 and (message := _BY_TAG.get(data[i])):
        size = data[i + 1]
        start = i + 2
        if size > 127:
            size, start = rest_of_size(data, start, size)
        if start + size == end:
            frame: Frame = message.frame(*read_fields(data, start, end, message.fields, budget))
            return frame
    return _read_split_frame(data, i, end, budget)


_BY_TAG = {number << 3 | DELIMITED: message for number, message in BY_NUMBER.items() if number < 16}
"""Messages by tag, for the kinds whose tag is one byte."""


def _read_split_frame(data: bytes, i: int, end: int, budget: FieldBudget) -> Frame:
    """Read a frame that has several fields. Pieces of ``data`` are joined, as protobuf joins them.

    No known peer writes pieces, and pieces of a kind with sub-messages cost more than their bytes. Each piece
    must be valid by itself. Unknown fields are skipped; a frame with only unknown fields is ``Unknown``.
    """
    message: Message | None = None
    values: list[Any] = []
    unknown = fields = 0
    pieces: list[bytes] = []
    while i < end and fields < MAX_FIELDS:
        fields += 1
        tag, i = read_tag(data, i)
        found = BY_NUMBER.get(tag >> 3)
        if found is None:
            unknown = tag >> 3
            i = skip_field(data, i, tag, (), budget)
            continue
        if tag & 7 != DELIMITED:
            raise WireFormatError(f"frame kind {tag >> 3} has wire type {tag & 7}")
        if message is not None and (found is not message or found.frame is not Data):
            raise WireFormatError("a frame holds more than one kind")
        message = found
        size, start = read_size(data, i)
        i = start + size
        values = read_fields(data, start, i, message.fields, budget)
        pieces.append(data[start:i])
    if i != end:
        raise WireFormatError("a frame is longer or shorter than its fields")
    budget.charge(fields)
    if message is None:
        return Unknown(unknown)
    if len(pieces) > 1:
        budget.charge(SUB_MESSAGE_FIELDS * len(pieces))
        whole = b"".join(pieces)
        values = read_fields(whole, 0, len(whole), message.fields, budget)
    frame: Frame = message.frame(*values)
    return frame
