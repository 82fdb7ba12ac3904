"""Protobuf's wire format, as far as the codec needs it: varints, tags, lengths, unknown fields.

https://protobuf.dev/programming-guides/encoding/. Where the specification leaves room, this accepts
what the reference implementation (upb) accepts: numbers in more bytes than they need, but at most
ten for a value and five for a tag or a length; values taken modulo 2**64.

Readers take ``(data, i)`` with ``i`` behind the first byte, which the caller has read already: most
varints have one byte, and a call costs more than all else about them. They may look behind the end
of a message but never behind ``data``: callers check once, after the last field, that they stand
exactly on the end; ``IndexError`` means truncated.
"""

from __future__ import annotations

from collections.abc import Container

_MASK = (1 << 64) - 1
_MAX_TAG = (1 << 32) - 1
_MAX_SIZE = (1 << 31) - 1

VARINT, FIXED64, DELIMITED, GROUP, GROUP_END, FIXED32 = range(6)

MAX_FIELDS = 64
"""Fields of one message, those that repeat by their own bound aside."""


SUB_MESSAGE_FIELDS = 5
"""Fields that a message within another is charged beside its own: to read an empty one takes as long."""


class WireFormatError(Exception):
    """These bytes are no message. ``args[0]`` says why."""


class FieldBudget:
    """Fields that the messages of one packet may have together, in sub-messages and groups too.

    The bounds of each message alone let 4 MiB hold a million fields, which took a second of the event loop.
    """

    __slots__ = ("_left",)

    def __init__(self, fields: int) -> None:
        self._left = fields

    def charge(self, fields: int) -> None:
        """Take ``fields`` off the budget. Raises ``WireFormatError`` when the budget is spent."""
        self._left -= fields
        if self._left < 0:
            raise WireFormatError("a packet has too many fields")


def varint(n: int) -> bytes:
    """``n`` as a varint. Raises ``ValueError`` for a negative number."""
    if n < 0x80:
        return bytes((n,))
    if n < 0x4000:
        return bytes((n & 127 | 128, n >> 7))
    if n < 0x200000:
        return bytes((n & 127 | 128, n >> 7 & 127 | 128, n >> 14))
    if n < 0x10000000:
        return bytes((n & 127 | 128, n >> 7 & 127 | 128, n >> 14 & 127 | 128, n >> 21))
    low = bytes((n & 127 | 128, n >> 7 & 127 | 128, n >> 14 & 127 | 128, n >> 21 & 127 | 128))
    return low + varint(n >> 28)


SMALL_END = 2048
SMALL = tuple(map(varint, range(SMALL_END)))
"""Varints ready made: stream numbers, and the lengths of small frames. 100 KiB for 0.2 us each."""


def rest_of_varint(data: bytes, i: int, first: int) -> tuple[int, int]:
    """The value that began with ``first`` (above 127), and where it ends."""
    byte = data[i]
    if byte < 128:
        return first & 127 | byte << 7, i + 1
    value = first & 127 | (byte & 127) << 7
    byte = data[i + 1]
    if byte < 128:
        return value | byte << 14, i + 2
    return _rest_of_long_varint(data, i + 2, value | (byte & 127) << 14)


def _rest_of_long_varint(data: bytes, i: int, value: int) -> tuple[int, int]:
    shift = 21
    while shift < 70:
        byte = data[i]
        i += 1
        if byte < 128:
            return (value | byte << shift) & _MASK, i
        value |= (byte & 127) << shift
        shift += 7
    raise WireFormatError("a varint is longer than ten bytes")


def rest_of_tag(data: bytes, i: int, first: int) -> tuple[int, int]:
    """Like :func:`rest_of_varint`, for a tag: at most five bytes and 32 bits."""
    return _rest_of_short(data, i, first, _MAX_TAG, "a tag")


def rest_of_size(data: bytes, i: int, first: int) -> tuple[int, int]:
    """Like :func:`rest_of_varint`, for a length: at most five bytes and 31 bits."""
    return _rest_of_short(data, i, first, _MAX_SIZE, "a length")


def _rest_of_short(data: bytes, i: int, first: int, largest: int, what: str) -> tuple[int, int]:
    value, end = rest_of_varint(data, i, first)
    if end - i > 4 or value > largest:
        raise WireFormatError(f"{what} is too large")
    return value, end


def read_varint(data: bytes, i: int) -> tuple[int, int]:
    """The varint at ``i``, and where it ends."""
    first = data[i]
    return (first, i + 1) if first < 128 else rest_of_varint(data, i + 1, first)


def read_tag(data: bytes, i: int) -> tuple[int, int]:
    """The tag at ``i``, and where it ends."""
    first = data[i]
    return (first, i + 1) if first < 128 else rest_of_tag(data, i + 1, first)


def read_size(data: bytes, i: int) -> tuple[int, int]:
    """The length at ``i``, and where it ends, which is where what it measures begins."""
    first = data[i]
    return (first, i + 1) if first < 128 else rest_of_size(data, i + 1, first)


def skip_field(data: bytes, i: int, tag: int, known: Container[int], budget: FieldBudget) -> int:
    """Where the unknown field whose tag was just read ends.

    ``known`` are the field numbers that the message knows: such a field comes here only with the
    wrong wire type, which no later version may give it. A group charges ``budget`` for what it holds.
    """
    if not tag >> 3:
        raise WireFormatError("a field has number 0")
    if tag >> 3 in known:
        raise WireFormatError(f"field {tag >> 3} has wire type {tag & 7}")
    return _skip_group(data, i, tag, budget) if tag & 7 == GROUP else _skip_value(data, i, tag)


def _skip_value(data: bytes, i: int, tag: int) -> int:
    match tag & 7:
        case 0:
            return read_varint(data, i)[1]
        case 1:
            return i + 8
        case 2:
            size, start = read_size(data, i)
            return start + size
        case 5:
            return i + 4
        case wire:
            raise WireFormatError(f"wire type {wire} is not valid here")


def _skip_group(data: bytes, i: int, tag: int, budget: FieldBudget) -> int:
    """Groups nest, so their bytes are walked without recursion."""
    open_groups = [tag >> 3]
    for _ in range(MAX_FIELDS):
        budget.charge(1)
        tag, i = read_tag(data, i)
        if tag & 7 == GROUP:
            open_groups.append(tag >> 3)
        elif tag & 7 != GROUP_END:
            i = _skip_value(data, i, tag)
        elif open_groups.pop() != tag >> 3:
            raise WireFormatError("a group ends that did not begin")
        elif not open_groups:
            return i
    raise WireFormatError("a group has too many fields")
