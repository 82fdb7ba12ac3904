"""Rate limit for lines of one kind: log lines, events, lines of the audit. No I/O, no clock."""

from __future__ import annotations

from typing import NamedTuple


class _Written(NamedTuple):
    """State of one key: ``spent`` of its burst was used after its last line, at ``last``."""

    spent: float
    last: float
    left_out: int
    interval: float


_OTHERS = object()
"""The shared key of all keys that the table has no room for."""


class LineLimiter:
    """Allow ``burst`` lines of each key at once, then one in ``interval_seconds``; count the others.

    The table is bounded, because nodes and strangers choose some of the keys. Beyond ``most`` keys, the
    oldest key is forgotten if its whole burst is free again; otherwise all further keys share one entry.
    While lines of a key are left out, its interval doubles up to ``longest_seconds``.
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
        """Return None if the line must be left out, else the number of lines left out before this one.

        ``now`` is in seconds of a steady clock.
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
        """Whether the table has room for a key. The oldest key is removed if its burst is free again."""
        if len(self._written) < self._most:
            return True
        oldest, written = next(iter(self._written.items()))
        if now - written.last < written.spent * self._interval_seconds:
            return False
        del self._written[oldest]
        return True
