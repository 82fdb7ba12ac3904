"""Packets that cost more to decode than their bytes: many small fields, pieces, messages within messages."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tunnel_core.limits import Limits
from tunnel_core.wire.codec import encode_packet
from tunnel_core.wire.frames import Open
from tunnel_core.wire.protobuf import varint

_LIMITS = Limits()
_DATA, _CREDIT, _RESET, _HELLO, _WELCOME = 1, 2, 9, 16, 17
_GROUP = b"\xf3\x01" + b"\x08\x01" * 62 + b"\xf4\x01"
_LONG = b"\x80" * 9 + b"\x01"


def _delimited(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def _frame(number: int, fields: bytes) -> bytes:
    return _delimited(3, _delimited(number, fields))


def _one(*frames: Any) -> bytes:
    return encode_packet(0, 0, frames)


HOSTILE: Mapping[str, bytes] = MappingProxyType(
    {
        "hellos of empty services": _frame(_HELLO, _delimited(9, b"") * 256),
        "hellos of full services": _frame(_HELLO, _delimited(9, _delimited(1, b"") * 64) * 256),
        "hellos of features": _frame(_HELLO, _delimited(10, b"") * 64),
        "welcomes of long texts": _frame(_WELCOME, _delimited(14, b"x" * 1000)),
        "data in small pieces": _delimited(3, _delimited(_DATA, b"\x08\x01") * 60),
        "data in empty pieces": _delimited(3, _delimited(_DATA, b"") * 64),
        "data in large pieces": _delimited(3, _delimited(_DATA, _delimited(3, b"x" * 16)) * 48),
        "resets in pieces": _delimited(3, _delimited(_RESET, b"\x08\x01") * 60),
        "frames of unknown fields": _frame(_RESET, b"\xf8\x01\x01" * 64),
        "frames of groups": _frame(_RESET, _GROUP * 8),
        "unknown kinds": _delimited(3, b"\xf8\x01\x01" * 64),
        "groups beside frames": _GROUP,
        "opens of all fields": _one(Open(4001, "t", "u", "e", 65536, b"x" * 980, "exec", 7, True)),
        "long numbers": _frame(_CREDIT, b"\x08" + _LONG + b"\x10" + _LONG),
        "large data in odd order": _frame(_DATA, _delimited(3, b"x" * 990) + b"\x08\x01"),
    }
)
"""One encoded frame or field of each kind, by a name for the kind."""


def as_many(frame: bytes, size: int = _LIMITS.max_message_bytes) -> bytes:
    """A packet of at most ``size`` bytes with as many of ``frame`` as it holds, and as the limits allow."""
    return frame * min(size // len(frame), _LIMITS.max_frames_per_packet)
