"""Time the packets of bulk, so that bulk does not leave in bursts. No I/O, no clock.

Bursts alone overflow a queue of eight segments, whatever the average rate. Send time that was not used is
lost, except a few milliseconds, because catching up after a pause would be such a burst.
"""

from __future__ import annotations

import math

PACED_PATH_SECONDS = 0.010
"""Round trip from which packets are paced. On shorter ones a timer is coarser than the bursts."""
_BURST_SECONDS = 0.004


class Pacer:
    """The pace of one carrier. Cheap, because its caller uses it before and after each packet."""

    __slots__ = ("_next_at", "_rate", "_waiting")

    def __init__(self, now: float) -> None:
        self._next_at = now
        self._rate = 0.0
        self._waiting = False

    def must_wait(self, now: float) -> bool:
        """Whether bulk has to wait until ``deadline``."""
        self._waiting = now < self._next_at
        return self._waiting

    def clear(self) -> None:
        """Forget that bulk waits for the pace, because another bound decides now."""
        self._waiting = False

    @property
    def deadline(self) -> float:
        """When bulk that must wait may leave; infinity if none must."""
        return self._next_at if self._waiting else math.inf

    def bytes_ahead(self, now: float) -> float:
        """Bytes that left before their time."""
        return max(0.0, self._next_at - now) * self._rate

    def sent(self, size: int, now: float, rate: float) -> None:
        """Count ``size`` bytes of any kind that leave now. ``rate`` is in bytes per second."""
        self._rate = rate
        self._next_at = max(self._next_at, now - _BURST_SECONDS) + size / rate
