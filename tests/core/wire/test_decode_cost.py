"""The cost of decoding a packet, counted in operations, because a time depends on the machine.

A line of the decoder takes below 20 ns, so the bound is some 20 ms of the event loop. The largest packet that
is sent, 4,080 opens, has 1.05 million lines.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, NamedTuple

import pytest

from tests.rogues.packets import HOSTILE, as_many
from tunnel_core.limits import KIB, Limits
from tunnel_core.version import COMPILED, form
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.frames import Data, Malformed, Open, Packet

pytestmark = pytest.mark.skipif(
    form() == COMPILED, reason="compiled code has no lines to count; ./dev test counts those of its source"
)

LIMITS = Limits()
MOST_LINES = 1_100_000
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


def one(*frames: Any) -> bytes:
    return encode_packet(0, 0, frames)


USUAL = {
    "small data": one(Data(2**40, 2**50, b"x" * 990)),
    "opens as they are sent": one(Open(4001, "127.0.0.1:80", "kim@example.com", "tcp", 65536, b"x" * 900)),
}
ALL = {**HOSTILE, **USUAL}


@pytest.mark.parametrize("name", ALL)
def test_no_packet_costs_more_than_the_budget(name: str) -> None:
    cost = cost_of(as_many(ALL[name], LIMITS.max_message_bytes))
    assert cost.lines < MOST_LINES
    assert cost.copied <= MOST_COPIES * LIMITS.max_message_bytes
    if name in USUAL:
        assert isinstance(cost.outcome, Packet)


@pytest.mark.parametrize("name", ALL)
def test_accepted_packets_cost_in_proportion_to_their_size(name: str) -> None:
    frame = ALL[name]
    few = max(1, 8 * KIB // len(frame))
    small, large = (cost_of(frame * count) for count in (few, 4 * few))
    if isinstance(large.outcome, Packet):
        assert large.lines <= 4.2 * small.lines
        assert large.copied <= 4.2 * small.copied


def test_the_budget_has_room_for_the_largest_packets_that_are_sent() -> None:
    """The opens of a server that lets a node have more streams than usual; none has verb or priority."""
    most = [
        Open(n, "127.0.0.1:80", "kim", "tcp", 1, b"x") for n in range(1, 2 * LIMITS.max_frames_per_packet, 2)
    ]
    assert isinstance(decode_packet(encode_packet(1, 1, most)), Packet)


def test_one_large_payload_is_not_copied_at_all() -> None:
    assert cost_of(one(Data(1, 0, b"x" * LIMITS.max_message_bytes))).copied == 0
