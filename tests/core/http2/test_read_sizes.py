"""The size of a carrier's reads."""

from __future__ import annotations

from tunnel_core.http2.read_sizes import USUAL_READ, next_read
from tunnel_core.limits import KIB, MIB


def test_bulk_is_read_in_large_pieces() -> None:
    size = USUAL_READ
    for _ in range(10):
        size = next_read(size, size, size / (100 * MIB))
    assert size == 256 * KIB
    for _ in range(10):
        size = next_read(size, 100, 0.0001)
    assert size == USUAL_READ


def test_costly_input_is_read_in_small_pieces() -> None:
    size = 256 * KIB
    for _ in range(5):
        size = next_read(size, size, size / (1 * MIB))
    assert size <= 4 * KIB


def test_large_pieces_may_take_long() -> None:
    assert next_read(256 * KIB, 256 * KIB, 0.005) == 256 * KIB
