"""Choose the bytes that a carrier reads at once: more for bulk, fewer if bytes cost much time. No I/O."""

from __future__ import annotations

from tunnel_core.limits import KIB, MIB

USUAL_READ = 16 * KIB
_MIN_READ, _MAX_READ = 1 * KIB, 256 * KIB
_SLOW_SECONDS, _SLOW_BYTES_PER_SECOND = 0.001, 8 * MIB
"""A read that takes longer, and has fewer bytes per second, contains tiny frames, messages or TLS records."""


def next_read(size: int, length: int, seconds: float) -> int:
    """Return the next read size, after ``length`` of ``size`` bytes came and took ``seconds`` to handle."""
    if seconds > _SLOW_SECONDS and length < seconds * _SLOW_BYTES_PER_SECOND:
        return max(size // 4, _MIN_READ)
    if length * 4 >= size * 3:  # never all, because TLS adds bytes, and the last record is cut
        return min(size * 4, _MAX_READ)
    return size
