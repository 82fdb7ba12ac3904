"""A token bucket: ``rate`` bytes a second, and ``burst`` bytes at once after a rest. No I/O, no clock.

1. The bytes taken in any window of t seconds are at most ``rate * t + burst``, as long as the caller takes no
   more than ``room``.
2. ``take`` never refuses, because acknowledgements and pings must leave; else an empty bucket would look like
   a dead link. Bytes beyond the room are a debt, which is paid back before there is room again.
3. Room below one piece counts as none, and ``deadline`` waits for a piece. A packet for every few bytes would
   be all framing.
4. A caller that has bytes and finds no room calls ``note_blocked``. The time from there to the next ``take``,
   and the bytes of that take, are the cost of the cap; metrics show both.
"""

from __future__ import annotations

import math

_BURST_SECONDS = 0.1
"""Time at the capped rate whose bytes may leave at once."""
_PIECE_SECONDS = 0.02
"""Time at the capped rate that one piece lasts. A packet for every few bytes would be all framing."""
_MIN_BURST_BYTES = 4096
_MIN_PIECE_BYTES = 512
"""With less, the framing of a packet would outweigh its content."""
_ROUNDING = 0.99
"""The part of a piece that counts as one, so that a caller that wakes at the deadline finds room."""


class TokenBucket:
    """A bucket that is full at first. ``now`` is in seconds, of any origin, and never goes back.

    ``rate`` is in bytes per second, ``burst`` in bytes; with 0 it is a tenth of a second's bytes.
    """

    def __init__(self, rate: int, burst: int = 0) -> None:
        assert rate > 0
        self.rate = rate
        self.burst = burst or max(_MIN_BURST_BYTES, int(rate * _BURST_SECONDS))
        self.delayed_seconds = 0.0
        self.delayed_bytes = 0
        self._piece = min(self.burst, max(_MIN_PIECE_BYTES, int(rate * _PIECE_SECONDS)))
        self._level = float(self.burst)
        self._at = -math.inf
        self._blocked_since: float | None = None

    def room(self, now: float) -> int:
        """Bytes that may be taken now; 0 in debt, or if they are too few to be worth a packet."""
        self._fill(now)
        return int(self._level) if self._level >= self._piece * _ROUNDING else 0

    def take(self, count: int, now: float) -> None:
        """Take ``count`` bytes, whether there is room or not."""
        self._fill(now)
        self._level -= count
        if self._blocked_since is not None:
            self.delayed_seconds += now - self._blocked_since
            self.delayed_bytes += count
            self._blocked_since = None

    def note_blocked(self, now: float) -> None:
        """Note that bytes wait for room since ``now``, unless some already do."""
        if self._blocked_since is None:
            self._blocked_since = now

    def deadline(self, now: float) -> float:
        """Return when there is room for a piece worth sending; ``now`` if there is already."""
        self._fill(now)
        return now + max(0.0, self._piece - self._level) / self.rate

    def _fill(self, now: float) -> None:
        self._level = min(float(self.burst), self._level + (now - self._at) * self.rate)
        self._at = now
