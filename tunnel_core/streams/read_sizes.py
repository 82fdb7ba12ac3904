"""The size of the next read of a relay: small for messages, and large for bulk."""

from __future__ import annotations

from tunnel_core.limits import KIB, MIB

SMALLEST_READ = 16 * KIB
_LARGEST_READ = 1 * MIB


def next_read(size: int, length: int) -> int:
    """Return the size of the next read, after one of ``size`` bytes returned ``length``."""
    if length == size:
        return min(size * 4, _LARGEST_READ)
    if length * 4 < size:
        return max(size // 2, SMALLEST_READ)
    return size
