"""How far credit may grow: one pool for all streams of a process.

Granted credit cannot be taken back, so growth is what must be bounded. Every stream has its initial
credit reserved; what a window grows beyond that comes from the pool, and a stream may grow only
while the growth is a small share of what is free. (The dynamic threshold of shared-memory switches,
Choudhury and Hahne 1998: a few busy streams get much, many get little, and a late one always some.)
"""

from __future__ import annotations

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
