"""Rate limits for sources and names: a small token bucket for each of many keys. No I/O.

Strangers choose keys, so the table is bounded. The key that was unused for the longest time is dropped first,
which at worst restores its whole budget.
"""

from __future__ import annotations

MAX_KEYS = 10_000


class RequestRateLimits:
    """Allow ``burst`` requests at once, and one more every ``every_seconds``, for each of ``most`` keys.

    ``now`` is monotonic, in seconds.
    """

    def __init__(self, burst: int, every_seconds: float, most: int = MAX_KEYS) -> None:
        self._burst = burst
        self._every = every_seconds
        self._most = most
        self._spent: dict[str, tuple[float, float]] = {}  # the amount spent, and its time; newest last

    def __len__(self) -> int:
        return len(self._spent)

    def wait_seconds(self, key: str, now: float) -> float:
        """Return the seconds until ``key`` may spend one more request; 0 if it may now."""
        return max(0.0, (self._spent_by(key, now) + 1 - self._burst) * self._every)

    def spend(self, key: str, now: float) -> None:
        """Count a request of ``key``, even beyond its budget. The debt never exceeds the budget."""
        spent = min(self._spent_by(key, now) + 1, float(self._burst))
        self._spent.pop(key, None)
        while len(self._spent) >= self._most:
            del self._spent[next(iter(self._spent))]
        self._spent[key] = (spent, now)

    def _spent_by(self, key: str, now: float) -> float:
        spent, at = self._spent.get(key, (0.0, now))
        return max(0.0, spent - (now - at) / self._every)
