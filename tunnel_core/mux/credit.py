"""Memory that all sessions of a process share: growth of credit, and bytes sent but not acknowledged.

Granted credit cannot be revoked, so its growth must be bounded. Every stream has its initial credit reserved.
A window that grows beyond it takes bytes from the pool, and may do so only while these bytes are a small
share of the free ones. This is the dynamic threshold of shared-memory switches (Choudhury and Hahne 1998). A
few busy streams get much, many streams get little, and a late stream always gets some.
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
_MAX_STALE = 64


class CreditPool:
    """Bytes by which windows may exceed their initial credit, over all sessions of a process."""

    __slots__ = ("granted", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.granted = 0

    def try_grow(self, size: int) -> bool:
        """Take ``size`` bytes if they are at most an eighth of the free ones. Return whether it did."""
        if size * _SHARE > self.size - self.granted:
            return False
        self.granted += size
        return True

    def release(self, size: int) -> None:
        """Return the ``size`` bytes by which a window had grown."""
        self.granted -= size

    @property
    def under_pressure(self) -> bool:
        """Whether less than an eighth is free, so that streams soon cannot double their initial credit."""
        return self.granted * 8 > self.size * 7


class SendPool:
    """Bytes that were sent and are retained until the peer acknowledges them, over all sessions of a process.

    A session may add bytes while it retains at most an eighth of the free bytes. So sessions whose peers
    acknowledge nothing leave a share for each other session. A sixteenth is reserved for the early data of
    opens, and for the first 64 KiB of a session. Without that reserve a late session gets none, because the
    share shrinks with each session that keeps one. Bytes that were charged once may always be retransmitted,
    so that sessions which resume together cannot block each other.
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
        self._wake_below = 0  # the highest threshold; 0: no session waits

    @property
    def is_short(self) -> bool:
        """Whether less than a quarter of the bytes for data is free."""
        return self.used * 4 > self._data_size * 3

    def room(self, retained: int) -> int:
        """Bytes that a session may add to its ``retained`` bytes; 0 or less means none."""
        room = (self._data_size - self.used) // _SHARE - retained
        if room < self._step and retained < self._step:
            return max(room, min(self._step - retained, self.size - self.used))
        return room

    def open_room(self, retained: int) -> int:
        """Like ``room``, for the early data of an open, which may use the reserve too."""
        return max(self.room(retained), (self.size - self.used) // _SHARE - retained)

    def release(self, size: int) -> None:
        """Free ``size`` bytes that the peer acknowledged, or whose stream was reset.

        Wake sessions that fit now.
        """
        self.used -= size
        if self.used < self._wake_below:
            self._wake_waiting()

    def call_when_free(self, wake: Callable[[], None], retained: int) -> None:
        """Call ``wake`` once, when a session with ``retained`` bytes may add enough for a packet.

        A session that retains more than its share is not called, because only acknowledgements from its own
        peer make room for it.
        """
        threshold = (
            self._data_size - _SHARE * (retained + self._step) if retained >= self._step else self.size
        )
        if threshold <= 0:
            self.forget(wake)
        elif self._thresholds.get(wake) != threshold:
            self._thresholds[wake] = threshold
            self._serial += 1  # no two entries are compared by their calls
            heapq.heappush(self._by_threshold, (-threshold, self._serial, wake))
            self._wake_below = max(self._wake_below, threshold)
            if len(self._by_threshold) > 2 * len(self._thresholds) + _MAX_STALE:
                self._drop_stale()

    def forget(self, wake: Callable[[], None]) -> None:
        """Remove the call of a session that has ended."""
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
