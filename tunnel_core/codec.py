"""Packets to bytes and back: plain protobuf (``proto/qanat/v1/tunnel.proto``), without its objects.

Generated classes cost a third of the hot path (design.md section 3), and 2.5 MiB in every agent just to
be imported. So the packet, data, credit and end are written out here, the varint of one byte in
line, and all other frames go by the table in ``messages``. Tests hold both directions against the
generated classes.

A reader accepts what protobuf accepts and reads it equally (unknown fields, any order, repeats, a
frame in pieces), with two exceptions, both on the strict side: the bounds, and a known field with a
foreign wire type, which protobuf would take for an unknown one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tunnel_core.frames import (
    Credit,
    Data,
    DataParts,
    End,
    Frame,
    Malformed,
    Packet,
    Payload,
    Ping,
    Pong,
    Unknown,
)
from tunnel_core.limits import Limits
from tunnel_core.messages import BY_FRAME, BY_NUMBER, Message, read_fields, write_fields
from tunnel_core.wire import (
    DELIMITED,
    MAX_FIELDS,
    SMALL,
    SMALL_END,
    BrokenWire,
    read_size,
    read_tag,
    rest_of_size,
    rest_of_tag,
    rest_of_varint,
    skip_field,
    varint,
)

_MAX_FRAMES = Limits().max_frames_per_packet
_PACKET_FIELDS = range(_MAX_FRAMES + MAX_FIELDS)
_KNOWN = frozenset((1, 2, 3, 5, 6))

_LEAST_VIEW = 4096
"""Below this a copy is cheaper than a view, in time and in memory."""
_new = tuple.__new__  # half the price of a named tuple's own constructor

_Parts: TypeAlias = list[Payload]
_Reader: TypeAlias = Callable[[bytes, int, int], Frame]


# Writing. A frame of a packet is 0x1a, its length, and in it the tag of its kind, a length, the fields.


def encode_packet(
    number: int, ack: int, frames: Sequence[Frame], arrived: int = 0, confirm_now: bool = False
) -> bytes:
    """The packet as one message; payloads are copied once, into it. ``ValueError`` for a negative number."""
    parts: _Parts = []
    if number:
        parts += b"\x08", SMALL[number] if number < SMALL_END else varint(number)
    if ack:
        parts += b"\x10", SMALL[ack] if ack < SMALL_END else varint(ack)
    for frame in frames:
        _WRITERS[type(frame)](parts, frame)
    if arrived:
        parts += b"\x2d", arrived.to_bytes(4, "little")
    if confirm_now:
        parts.append(b"\x30\x01")
    return b"".join(parts)


def _write_data(parts: _Parts, frame: Data) -> None:
    stream, offset, payload = frame
    _write_data_head(parts, stream, offset, len(payload))
    parts.append(payload)


def _write_data_parts(parts: _Parts, frame: DataParts) -> None:
    _write_data_head(parts, frame.stream, frame.offset, sum(map(len, frame.parts)))
    parts += frame.parts


def _write_data_head(parts: _Parts, stream: int, offset: int, size: int) -> None:
    head = b"\x08" + (SMALL[stream] if stream < SMALL_END else varint(stream))
    if offset:
        head += b"\x10" + (SMALL[offset] if offset < SMALL_END else varint(offset))
    if size:
        head += b"\x1a" + (SMALL[size] if size < SMALL_END else varint(size))
    size += len(head)
    inner = SMALL[size] if size < SMALL_END else varint(size)
    size += len(inner) + 1
    outer = SMALL[size] if size < SMALL_END else varint(size)
    parts += b"\x1a", outer, b"\x0a", inner, head


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
    _write_kind(parts, message.number, write_fields(frame, message.fields))


def _write_unknown(parts: _Parts, frame: Unknown) -> None:
    """An empty frame of that number: what a later version might say, for tests and for nobody else."""
    _write_kind(parts, frame.field, b"")


def _write_kind(parts: _Parts, number: int, body: bytes) -> None:
    head = varint(number << 3 | DELIMITED) + varint(len(body))
    parts += b"\x1a", varint(len(head) + len(body)), head, body


_WRITERS: dict[type[Any], Callable[[_Parts, Any], None]] = {
    **dict.fromkeys(BY_FRAME, _write_by_table),
    Data: _write_data,
    DataParts: _write_data_parts,
    Credit: _write_credit,
    End: _write_end,
    Ping: _write_ping,
    Pong: _write_pong,
    Unknown: _write_unknown,
}


# Reading.


def decode_packet(data: bytes) -> Packet | Malformed:
    """Never raises. A large payload that is at least half of ``data`` is a view into it, any other a copy."""
    try:
        return _read_packet(data)
    except IndexError:
        return Malformed("truncated")
    except BrokenWire as broken:
        return Malformed(broken.args[0])
    except UnicodeDecodeError:
        return Malformed("a text is not UTF-8")


def _read_packet(data: bytes) -> Packet:
    i = number = ack = arrived = confirm_now = 0
    end = len(data)
    frames: list[Frame] = []
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
                raise BrokenWire("truncated")
            frames.append(_read_frame(data, i, stop))
            i = stop
        elif tag == 0x08:
            number = data[i]
            i += 1
            if number > 127:
                number, i = rest_of_varint(data, i, number)
        elif tag == 0x10:
            ack = data[i]
            i += 1
            if ack > 127:
                ack, i = rest_of_varint(data, i, ack)
        elif tag == 0x2D:
            arrived = int.from_bytes(data[i : i + 4], "little")
            i += 4
        elif tag == 0x30:
            confirm_now = data[i]
            i += 1
            if confirm_now > 127:
                confirm_now, i = rest_of_varint(data, i, confirm_now)
        else:
            i = skip_field(data, i, tag, _KNOWN)
    if i != end or len(frames) > _MAX_FRAMES:
        raise BrokenWire("truncated" if i > end else "too many frames or fields")
    return _new(Packet, (number, ack, frames, arrived, confirm_now != 0))


def _read_frame(data: bytes, i: int, end: int) -> Frame:
    """The usual frame is one field that fills it; any other goes the long way."""
    if end - i > 1:
        reader = _READERS_BY_TAG.get(data[i])
        if reader:
            size = data[i + 1]
            start = i + 2
            if size > 127:
                size, start = rest_of_size(data, start, size)
            if start + size == end:
                return reader(data, start, end)
    return _read_frame_of_many_fields(data, i, end)


def _read_data(data: bytes, i: int, end: int) -> Data:
    begin = i
    stream = offset = 0
    try:
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
                return _new(Data, (stream, offset, _payload(data, i, end)))
    except IndexError:
        pass  # truncated, or no payload: the table knows which
    return Data(*_read_by_table(1, data, begin, end))


def _payload(data: bytes, i: int, end: int) -> Payload:
    size = end - i
    if size < _LEAST_VIEW or size + size < len(data):
        return data[i:end]
    return memoryview(data)[i:end]


def _read_credit(data: bytes, i: int, end: int) -> Credit:
    return Credit(*(_pair(data, i, end) or _read_by_table(2, data, i, end)))


def _read_end(data: bytes, i: int, end: int) -> End:
    return End(*(_pair(data, i, end) or _read_by_table(3, data, i, end)))


def _read_ping(data: bytes, i: int, end: int) -> Ping:
    return Ping(*(_pair(data, i, end) or _read_by_table(4, data, i, end)))


def _pair(data: bytes, i: int, end: int) -> tuple[int, int] | None:
    """Two numbers as we write them; None for any other way to write them."""
    try:
        if data[i] != 0x08:
            return None
        stream = data[i + 1]
        i += 2
        if stream > 127:
            stream, i = rest_of_varint(data, i, stream)
        if data[i] != 0x10:
            return None
        count = data[i + 1]
        i += 2
        if count > 127:
            count, i = rest_of_varint(data, i, count)
    except IndexError:
        return None
    return (stream, count) if i == end else None


def _read_by_table(number: int, data: bytes, i: int, end: int) -> list[Any]:
    return read_fields(data, i, end, BY_NUMBER[number].fields)


def _table_reader(message: Message) -> _Reader:
    def read(data: bytes, i: int, end: int) -> Frame:
        frame: Frame = message.frame(*read_fields(data, i, end, message.fields))
        return frame

    return read


_READERS: dict[int, _Reader] = {
    **{number: _table_reader(message) for number, message in BY_NUMBER.items()},
    1: _read_data,
    2: _read_credit,
    3: _read_end,
    4: _read_ping,
}
_READERS_BY_TAG = {number << 3 | DELIMITED: reader for number, reader in _READERS.items() if number < 16}
"""For the kinds whose tag is one byte."""


def _read_frame_of_many_fields(data: bytes, i: int, end: int) -> Frame:
    """As protobuf reads a oneof: the last kind wins, and pieces of one kind in a row are one message.

    Each piece must be valid by itself; a message in pieces is what its pieces are in one.
    """
    frame: Frame = Unknown(0)
    kind = 0
    pieces: list[bytes] = []
    for _ in range(MAX_FIELDS):
        if i >= end:
            break
        tag, i = read_tag(data, i)
        number = tag >> 3
        if number not in _READERS or tag & 7 != DELIMITED:
            i = _skip_unknown_kind(data, i, tag)
            frame = frame if kind else Unknown(number)
            continue
        size, start = read_size(data, i)
        i = start + size
        frame = _READERS[number](data, start, i)
        pieces = [*pieces, data[start:i]] if number == kind else [data[start:i]]
        kind = number
    if i != end:
        raise BrokenWire("a frame is longer or shorter than its fields")
    if len(pieces) == 1 or not kind:
        return frame
    whole = b"".join(pieces)
    return _READERS[kind](whole, 0, len(whole))


def _skip_unknown_kind(data: bytes, i: int, tag: int) -> int:
    if tag >> 3 in _READERS:
        raise BrokenWire(f"frame kind {tag >> 3} has wire type {tag & 7}")
    return skip_field(data, i, tag, known=())
