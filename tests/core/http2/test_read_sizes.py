"""The size of a carrier's reads."""

from __future__ import annotations

from tunnel_core.http2.read_sizes import USUAL_READ, next_read
from tunnel_core.limits import KIB, MIB


def test_bulk_is_read_in_large_pieces() -> None:
    size = USUAL_READ
    for _ in range(10):
        size = next_read(size, size * 7 // 8, size / (100 * MIB))  # the rest is TLS, and a record that is cut
    assert size == 256 * KIB


def test_small_reads_change_nothing() -> None:
    for size in (USUAL_READ, 256 * KIB):
        assert next_read(size, 100, 0.0001) == size


def test_costly_input_is_read_in_small_pieces() -> None:
    size = 256 * KIB
    for _ in range(5):
        size = next_read(size, size, size / (1 * MIB))
    assert size <= 4 * KIB


def test_large_pieces_may_take_long() -> None:
    assert next_read(256 * KIB, 256 * KIB, 0.005) == 256 * KIB
