"""What all sessions of a process share: how far credit may grow, and what may be sent and unconfirmed.

Granted credit cannot be taken back, so growth is what must be bounded. Every stream has its initial
credit reserved; what a window grows beyond that comes from the pool, and a stream may grow only
while the growth is a small share of what is free. (The dynamic threshold of shared-memory switches,
Choudhury and Hahne 1998: a few busy streams get much, many get little, and a late one always some.)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from tunnel_core.limits import KIB

_SHARE = 8
"""Part of what is free that the growth of one stream, or the bytes of one session without acknowledgement,
may take."""
_OPEN_RESERVE = 16
"""Part of the send pool for early data of opens, and for the first 64 KiB of each session."""
_WAKE_BYTES = 64 * KIB
"""Bytes of room for which a waiting session is woken: less would leave in small packets. Each session has so
much at first."""
_MOST_STALE = 64


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

    A session may add bytes while it keeps at most an eighth of what is free, so sessions whose peers confirm
    nothing leave a share for each other session. A sixteenth is reserved for the early data of opens, and for
    the first 64 KiB of a session, because the share shrinks with each session that takes one and keeps it.
    What was charged once may always be sent again, so that sessions which resume together cannot block each
    other.
    """

    __slots__ = (
        "_by_threshold",
        "_data_size",
        "_serial",
        "_step",
        "_thresholds",
        "_wake_below",
        "size",
        "used",
    )

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self._data_size = size - size // _OPEN_RESERVE
        self._step = min(_WAKE_BYTES, size // 1024)
        self._thresholds: dict[Callable[[], None], int] = {}
        self._by_threshold: list[tuple[int, int, Callable[[], None]]] = []  # a heap, the highest first
        self._serial = 0
        self._wake_below = 0  # the highest threshold; 0: nobody waits

    @property
    def free(self) -> int:
        """Bytes that nothing uses. Not positive: full."""
        return self.size - self.used

    @property
    def is_short(self) -> bool:
        """Whether less than a quarter is left for data."""
        return self.used * 4 > self._data_size * 3

    def room(self, held: int) -> int:
        """Bytes that a session which keeps ``held`` bytes may add to them; not positive: none."""
        room = (self._data_size - self.used) // _SHARE - held
        if room < self._step and held < self._step:
            return max(room, min(self._step - held, self.size - self.used))
        return room

    def open_room(self, held: int) -> int:
        """Like ``room`` for the early data of an open, which may use the reserve too."""
        return max(self.room(held), (self.size - self.used) // _SHARE - held)

    def release(self, size: int) -> None:
        """Returns ``size`` bytes: the peer has them, or their stream was reset."""
        self.used -= size
        if self.used < self._wake_below:
            self._wake_waiting()

    def call_when_free(self, wake: Callable[[], None], held: int) -> None:
        """Calls ``wake`` once, when a session that keeps ``held`` bytes may add enough for a packet.

        A session that already keeps more than its share is not called: only its own acknowledgements make
        room for it.
        """
        threshold = self._data_size - _SHARE * (held + self._step) if held >= self._step else self.size
        if threshold <= 0:
            self.forget(wake)
        elif self._thresholds.get(wake) != threshold:
            self._thresholds[wake] = threshold
            self._serial += 1  # no two entries are compared by their calls
            heapq.heappush(self._by_threshold, (-threshold, self._serial, wake))
            self._wake_below = max(self._wake_below, threshold)
            if len(self._by_threshold) > 2 * len(self._thresholds) + _MOST_STALE:
                self._drop_stale()

    def forget(self, wake: Callable[[], None]) -> None:
        """Removes the call of a session that is gone."""
        self._thresholds.pop(wake, None)

    def _wake_waiting(self) -> None:
        heap, called = self._by_threshold, []
        while heap and self.used < -heap[0][0]:
            threshold, _, wake = heapq.heappop(heap)
            if self._thresholds.get(wake) == -threshold:
                del self._thresholds[wake]
                called.append(wake)
        self._wake_below = -heap[0][0] if heap else 0
        for wake in called:
            wake()

    def _drop_stale(self) -> None:
        heap = self._by_threshold
        heap[:] = [entry for entry in heap if self._thresholds.get(entry[2]) == -entry[0]]
        heapq.heapify(heap)
