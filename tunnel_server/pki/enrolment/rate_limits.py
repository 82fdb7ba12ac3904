"""What one source, or one name, may do in a while: a small token bucket for each of many keys. No I/O.

Keys are strangers' to choose, so the table is bounded: whoever has done nothing for the longest time is
forgotten first, which at worst gives somebody his whole budget back.
"""

from __future__ import annotations

MAX_KEYS = 10_000


class RequestRateLimits:
    """``burst`` at once, and one more every ``every_seconds``. ``now`` is in seconds and never goes back."""

    def __init__(self, burst: int, every_seconds: float, most: int = MAX_KEYS) -> None:
        self._burst = burst
        self._every = every_seconds
        self._most = most
        self._spent: dict[str, tuple[float, float]] = {}  # how much, and when that was so; newest last

    def __len__(self) -> int:
        return len(self._spent)

    def wait_seconds(self, key: str, now: float) -> float:
        """How long until ``key`` may spend one more; 0 if it may now."""
        return max(0.0, (self._spent_by(key, now) + 1 - self._burst) * self._every)

    def spend(self, key: str, now: float) -> None:
        """One is spent, whether there was one or not; the debt is never more than the budget."""
        spent = min(self._spent_by(key, now) + 1, float(self._burst))
        self._spent.pop(key, None)
        while len(self._spent) >= self._most:
            del self._spent[next(iter(self._spent))]
        self._spent[key] = (spent, now)

    def _spent_by(self, key: str, now: float) -> float:
        spent, at = self._spent.get(key, (0.0, now))
        return max(0.0, spent - (now - at) / self._every)
