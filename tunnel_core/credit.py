"""What all sessions of a process share: how far credit may grow, and what may be sent and unconfirmed.

Granted credit cannot be taken back, so growth is what must be bounded. Every stream has its initial
credit reserved; what a window grows beyond that comes from the pool, and a stream may grow only
while the growth is a small share of what is free. (The dynamic threshold of shared-memory switches,
Choudhury and Hahne 1998: a few busy streams get much, many get little, and a late one always some.)
"""

from __future__ import annotations

from collections.abc import Callable

_SHARE = 8


class CreditPool:
    """Bytes that windows may grow beyond their initial credit, over all sessions of a process."""

    __slots__ = ("granted", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.granted = 0

    def try_grow(self, extra: int) -> bool:
        """Takes ``extra`` bytes if that is at most an eighth of what is free."""
        if extra * _SHARE > self.size - self.granted:
            return False
        self.granted += extra
        return True

    def release(self, extra: int) -> None:
        """Gives back what a window had grown; its stream is gone."""
        self.granted -= extra

    @property
    def under_pressure(self) -> bool:
        """Whether so little is free that a stream could not double its initial credit for long."""
        return self.granted * 8 > self.size * 7


class SendPool:
    """Bytes that were sent and are kept until they are confirmed, over all sessions of a process.

    Full, it makes data wait; what was charged once may always be sent again, so that sessions which
    come back together cannot block each other.
    """

    __slots__ = ("_waiting", "size", "used")

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self._waiting: set[Callable[[], None]] = set()

    @property
    def free(self) -> int:
        """Not positive: full. A little more than the size may be in use, never much."""
        return self.size - self.used

    def release(self, size: int) -> None:
        """The peer has these bytes, or nobody wants them any more."""
        self.used -= size
        if self._waiting and self.used < self.size:
            waiting, self._waiting = self._waiting, set()
            for wake in waiting:
                wake()

    def call_when_free(self, wake: Callable[[], None]) -> None:
        """Calls ``wake`` once, when something is free again; asked twice, still once."""
        self._waiting.add(wake)

    def forget(self, wake: Callable[[], None]) -> None:
        """Whoever waited is gone."""
        self._waiting.discard(wake)
