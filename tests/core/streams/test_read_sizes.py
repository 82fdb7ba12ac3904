"""Sizes of a relay's reads; test_relay.py has them on streams."""

from __future__ import annotations

from tunnel_core.limits import KIB, MIB
from tunnel_core.streams.read_sizes import SMALLEST_READ, next_read


def test_they_grow_while_reads_are_full_and_shrink_while_most_is_empty() -> None:
    grown = [SMALLEST_READ]
    while len(grown) < 6:
        grown.append(next_read(grown[-1], grown[-1]))
    assert grown == [16 * KIB, 64 * KIB, 256 * KIB, MIB, MIB, MIB]
    assert next_read(MIB, MIB // 4) == MIB
    assert next_read(MIB, MIB // 4 - 1) == MIB // 2
    assert next_read(SMALLEST_READ, 1) == SMALLEST_READ
