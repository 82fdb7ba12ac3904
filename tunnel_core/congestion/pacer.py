"""When the next packet of bulk may leave, so that a flight does not leave as one burst. No I/O, no clock.

A queue of eight segments overflows by bursts alone, whatever their average. Time that was not used is lost
but for a few milliseconds: who makes up for a pause makes the burst that pacing is there against.
"""

from __future__ import annotations

import math

PACED_PATH_SECONDS = 0.010
"""Round trip from which packets are paced. On shorter ones a timer is coarser than the bursts."""
_BURST_SECONDS = 0.004


class Pacer:
    """Of one carrier. Small, because it is asked before and told after each packet."""

    __slots__ = ("_held", "_next_at", "_rate")

    def __init__(self, now: float) -> None:
        self._next_at = now
        self._rate = 0.0
        self._held = False

    def is_held(self, now: float) -> bool:
        """Whether bulk has to wait; if so, ``deadline`` says until when."""
        self._held = now < self._next_at
        return self._held

    def let_go(self) -> None:
        """Something else than the pace decides now."""
        self._held = False

    @property
    def deadline(self) -> float:
        """When bulk that is held may leave; infinity if none is."""
        return self._next_at if self._held else math.inf

    def owed(self, now: float) -> float:
        """Bytes that have left before their time."""
        return max(0.0, self._next_at - now) * self._rate

    def sent(self, size: int, now: float, rate: float) -> None:
        """``size`` bytes leave, of any kind; ``rate`` in bytes per second."""
        self._rate = rate
        self._next_at = max(self._next_at, now - _BURST_SECONDS) + size / rate
