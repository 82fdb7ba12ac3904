"""What a packet costs to decode: operations are counted, because a time depends on the machine.

A line of the decoder takes below 20 ns, so the bound is some 20 ms of the event loop. The largest packet that
is sent, 4,080 opens, has 1.1 million lines.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, NamedTuple

import pytest

from tests.core.packets import delimited
from tunnel_core.codec import decode_packet, encode_packet
from tunnel_core.frames import Data, Malformed, Open, Packet
from tunnel_core.limits import KIB, Limits

LIMITS = Limits()
MOST_LINES = 1_200_000
MOST_COPIES = 4
"""How often the bytes of a packet may be copied. Pieces of ``data`` are: each is read, and all are joined."""


class Cost(NamedTuple):
    outcome: Packet | Malformed
    lines: int
    copied: int


class Counted(bytes):
    """Counts the bytes that are cut out of it."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if isinstance(key, slice):
            self.copied += len(found)
        return found


def cost_of(data: bytes) -> Cost:
    """Decodes ``data`` and counts the lines that run, and the bytes that are copied."""
    counted, lines = Counted(data), 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        outcome = decode_packet(counted)
    finally:
        sys.settrace(before)
    return Cost(outcome, lines, counted.copied)


def as_many(frame: bytes, size: int) -> bytes:
    """A packet of these frames, as many as the limits allow."""
    return frame * min(size // len(frame), LIMITS.max_frames_per_packet)


def message(number: int, fields: bytes) -> bytes:
    """A frame of this kind."""
    return delimited(3, delimited(number, fields))


def one(*frames: Any) -> bytes:
    return encode_packet(0, 0, frames)


DATA, RESET, HELLO, WELCOME, BYE = 1, 9, 16, 17, 20
GROUP = b"\xf3\x01" + b"\x08\x01" * 62 + b"\xf4\x01"
HOSTILE = {
    "hellos of empty services": message(HELLO, delimited(9, b"") * 256),
    "hellos of full services": message(HELLO, delimited(9, delimited(1, b"") * 64) * 256),
    "hellos of features": message(HELLO, delimited(10, b"") * 64),
    "welcomes of long texts": message(WELCOME, delimited(14, b"x" * 1000)),
    "data in small pieces": delimited(3, delimited(DATA, b"\x08\x01") * 60),
    "data in empty pieces": delimited(3, delimited(DATA, b"") * 64),
    "data in large pieces": delimited(3, delimited(DATA, delimited(3, b"x" * 16)) * 48),
    "resets in pieces": delimited(3, delimited(RESET, b"\x08\x01") * 60),
    "frames of unknown fields": message(RESET, b"\xf8\x01\x01" * 64),
    "frames of groups": message(RESET, GROUP * 8),
    "unknown kinds": delimited(3, b"\xf8\x01\x01" * 64),
    "groups beside frames": GROUP,
    "opens of all fields": one(Open(4001, "t", "u", "e", 65536, b"x" * 990, "exec", 7)),
    "long numbers": message(2, b"\x08" + b"\x80" * 9 + b"\x01\x10" + b"\x80" * 9 + b"\x01"),
    "large data in odd order": message(DATA, delimited(3, b"x" * 990) + b"\x08\x01"),
}
USUAL = {
    "small data": one(Data(2**40, 2**50, b"x" * 990)),
    "opens as they are sent": one(Open(4001, "127.0.0.1:80", "kim@example.com", "tcp", 65536, b"x" * 900)),
}


@pytest.mark.parametrize("name", [*HOSTILE, *USUAL])
def test_no_packet_costs_more_than_the_budget(name: str) -> None:
    cost = cost_of(as_many((HOSTILE | USUAL)[name], LIMITS.max_message_bytes))
    assert cost.lines < MOST_LINES
    assert cost.copied <= MOST_COPIES * LIMITS.max_message_bytes
    if name in USUAL:
        assert isinstance(cost.outcome, Packet)


@pytest.mark.parametrize("name", [*HOSTILE, *USUAL])
def test_what_is_accepted_costs_in_proportion_to_its_size(name: str) -> None:
    frame = (HOSTILE | USUAL)[name]
    small, large = (cost_of(as_many(frame, size * KIB)) for size in (40, 160))
    if isinstance(large.outcome, Packet):
        assert large.lines <= 4.2 * small.lines
        assert large.copied <= 4.2 * small.copied


def test_the_budget_has_room_for_the_largest_packets_that_are_sent() -> None:
    """Opens of a server that lets a node have more streams than usual; none sends verb or priority."""
    most = [
        Open(n, "127.0.0.1:80", "kim", "tcp", 1, b"x") for n in range(1, 2 * LIMITS.max_frames_per_packet, 2)
    ]
    assert isinstance(decode_packet(encode_packet(1, 1, most)), Packet)


def test_one_large_payload_is_not_copied_at_all() -> None:
    assert cost_of(one(Data(1, 0, b"x" * LIMITS.max_message_bytes))).copied == 0
