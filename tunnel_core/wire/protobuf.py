"""The part of protobuf's wire format that the codec needs: varints, tags, lengths, unknown fields.

https://protobuf.dev/programming-guides/encoding/. Where the specification leaves room, this module accepts
what the reference implementation (upb) accepts. Numbers may have more bytes than they need, but at most ten
for a value and five for a tag or a length. Values count modulo 2**64.

Readers take ``(data, i)`` with ``i`` behind the first byte, which the caller has read already. Most varints
have one byte, and a call would cost more than reading it. Readers may read beyond the end of a message but
never beyond ``data``. Callers check once, after the last field, that they are exactly at the end.
``IndexError`` means truncated.
"""

from __future__ import annotations

from collections.abc import Container

_MASK = (1 << 64) - 1
_MAX_TAG = (1 << 32) - 1
_MAX_SIZE = (1 << 31) - 1

VARINT, FIXED64, DELIMITED, GROUP, GROUP_END, FIXED32 = range(6)

MAX_FIELDS = 64
"""Fields of one message, except repeated fields, which have their own bound."""


SUB_MESSAGE_FIELDS = 5
"""Fields that a message within another is charged beside its own: to read an empty one takes as long."""


class WireFormatError(Exception):
    """Raised for bytes that are no message. ``args[0]`` has the cause."""


class FieldBudget:
    """Fields that all messages of one packet may have together, sub-messages and groups included.

    With bounds for each message alone 4 MiB hold a million fields, which took a second of the event loop.
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
    """Return ``n`` as a varint. Raises ``ValueError`` for a negative number."""
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
"""Precomputed varints, for stream numbers and lengths of small frames: 100 KiB save 0.2 us each."""


def rest_of_varint(data: bytes, i: int, first: int) -> tuple[int, int]:
    """Return the value that starts with ``first`` (above 127), and its end."""
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


def _rest_of_short(data: bytes, i: int, first: int, largest: int, name: str) -> tuple[int, int]:
    value, end = rest_of_varint(data, i, first)
    if end - i > 4 or value > largest:
        raise WireFormatError(f"{name} is too large")
    return value, end


def read_varint(data: bytes, i: int) -> tuple[int, int]:
    """Return the varint at ``i``, and its end."""
    first = data[i]
    return (first, i + 1) if first < 128 else rest_of_varint(data, i + 1, first)


def read_tag(data: bytes, i: int) -> tuple[int, int]:
    """Return the tag at ``i``, and its end."""
    first = data[i]
    return (first, i + 1) if first < 128 else rest_of_tag(data, i + 1, first)


def read_size(data: bytes, i: int) -> tuple[int, int]:
    """Return the length at ``i``, and its end, where the measured bytes start."""
    first = data[i]
    return (first, i + 1) if first < 128 else rest_of_size(data, i + 1, first)


def skip_field(data: bytes, i: int, tag: int, known: Container[int], budget: FieldBudget) -> int:
    """Return the end of the unknown field whose tag was just read. A group charges its fields to ``budget``.

    ``known`` has the field numbers of the message. Such a field is unknown only by its wire type, which no
    later version may change. Raises ``WireFormatError`` for it, for field number 0, and for a malformed
    group.
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
    """Skip nested groups without recursion."""
    open_groups = [tag >> 3]
    for _ in range(MAX_FIELDS):
        budget.charge(1)
        tag, i = read_tag(data, i)
        if tag & 7 == GROUP:
            open_groups.append(tag >> 3)
        elif tag & 7 != GROUP_END:
            i = _skip_value(data, i, tag)
        elif open_groups.pop() != tag >> 3:
            raise WireFormatError("a group ends that did not start")
        elif not open_groups:
            return i
    raise WireFormatError("a group has too many fields")
