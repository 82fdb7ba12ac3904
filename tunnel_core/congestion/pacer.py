"""Time the packets of bulk, so that bulk does not leave in bursts. No I/O, no clock.

Bursts alone overflow a queue of eight segments, whatever the average rate. Send time that was not used is
lost, except a few milliseconds, because catching up after a pause would be such a burst. A program that is
late because its processor is busy does catch up: otherwise it sends only while it happens to run.
"""

from __future__ import annotations

import math

PACED_PATH_SECONDS = 0.010
"""Round trip from which packets are paced. On shorter ones a timer is coarser than the bursts."""
_BURST_SECONDS = 0.004
_MAX_CATCH_UP_SECONDS = 0.1
"""A program catches up with at most so much: one period of the kernel's CPU quota. More, after one long
pause, would be a burst that a short queue loses."""


class Pacer:
    """The pace of one carrier. Cheap, because its caller uses it before and after each packet."""

    __slots__ = ("_next_at", "_rate", "_waiting", "late_seconds")

    def __init__(self, now: float) -> None:
        self._next_at = now
        self._rate = 0.0
        self._waiting = False
        self.late_seconds = 0.0
        """How much of the pace the program may catch up: how late it was after its last wait."""

    def must_wait(self, now: float) -> bool:
        """Whether bulk has to wait until ``deadline``."""
        self._waiting = now < self._next_at
        return self._waiting

    def asked(self, now: float) -> float:
        """End the wait, because the program asks for room. Return how late it is; 0: nothing was due."""
        late = 0.0
        if self._waiting and now >= self._next_at:
            late = now - self._next_at
            self.late_seconds = min(late, _MAX_CATCH_UP_SECONDS)
        self._waiting = False
        return late

    def clear(self) -> None:
        """Forget that bulk waits for the pace, because no bulk is left."""
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
        self._next_at = max(self._next_at, now - max(_BURST_SECONDS, self.late_seconds)) + size / rate
