"""How often something of one kind may be written: log lines, events, lines of the audit. No I/O, no clock."""

from __future__ import annotations

from typing import NamedTuple


class _Written(NamedTuple):
    """What was written for one key. ``spent`` of its burst was used up at ``last``, when it wrote last."""

    spent: float
    last: float
    left_out: int
    interval: float


_OTHERS = object()
"""The key of all for whose own key there is no room."""


class LineLimiter:
    """Lets ``burst`` lines of each key pass at once, then one in ``interval_seconds``; counts the others.

    Others choose some of the keys (nodes do), so the table is bounded. Beyond ``most`` keys the oldest is
    forgotten if it may write again; otherwise all further keys share one. The time between two lines of a key
    doubles up to ``longest_seconds`` while lines are left out.
    """

    def __init__(
        self,
        interval_seconds: float = 1.0,
        *,
        burst: int = 1,
        most: int = 1000,
        longest_seconds: float = 0.0,
    ) -> None:
        self._interval_seconds = interval_seconds
        self._burst = burst
        self._most = most
        self._longest_seconds = max(interval_seconds, longest_seconds)
        self._written: dict[object, _Written] = {}  # the key that wrote last stands last

    def note(self, key: object, now: float) -> int | None:
        """None to stay silent; else a line may be written, and this many were left out before it.

        ``now`` in seconds of a steady clock.
        """
        if key not in self._written and not self._has_room(now):
            key = _OTHERS
        spent, last, left_out, interval = self._written.get(key, _Written(0, now, 0, self._interval_seconds))
        spent_now = max(0.0, spent - (now - last) / interval)
        if spent_now + 1 > self._burst:
            self._written[key] = _Written(spent, last, left_out + 1, interval)
            return None
        goes_on = left_out and now - last < 2 * interval
        interval = min(2 * interval, self._longest_seconds) if goes_on else self._interval_seconds
        self._written.pop(key, None)
        self._written[key] = _Written(spent_now + 1, now, 0, interval)
        return left_out

    def _has_room(self, now: float) -> bool:
        """Whether one key more may be kept. The oldest makes room if it has its whole burst again."""
        if len(self._written) < self._most:
            return True
        oldest, written = next(iter(self._written.items()))
        if now - written.last < written.spent * self._interval_seconds:
            return False
        del self._written[oldest]
        return True
