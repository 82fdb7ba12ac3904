"""The sending half of a stream: bytes that are queued, or sent and retained until the peer acknowledges them.

No I/O, no clock. Offsets count bytes of the stream from 0. The buffer retains sent bytes, because resumption
retransmits content.
"""

from __future__ import annotations

from collections import deque

from tunnel_core.limits import KIB, Limits
from tunnel_core.wire.frames import Payload

_SMALL = 2 * KIB
"""Chunks below this size are joined, because an object for each would cost more than its content."""
_BLOCKED_QUEUE = 64 * KIB
"""Bytes that a stream may queue beyond its credit, so that the next grant finds bytes to send."""
_CHUNK_COST = 64
"""Bytes that a queued chunk counts for besides its content, so that tiny writes are bounded too."""


class SendBuffer:
    """Bytes for the peer: queued, sent, acknowledged."""

    __slots__ = (
        "_max_queue",
        "_retained",
        "_unsent",
        "acked",
        "limit",
        "max_sent",
        "queued",
        "sent",
        "size",
    )

    def __init__(self, credit: int, limits: Limits) -> None:
        self.limit = credit  # absolute offset up to which the peer granted credit
        self.sent = 0
        self.max_sent = 0  # the highest value that ``sent`` ever had
        self.acked = 0
        self.queued = 0  # bytes accepted and not yet sent
        self.size: int | None = None  # final size, once this half has ended
        self._unsent: deque[Payload] = deque()
        self._retained: deque[Payload] = deque()  # from ``acked`` to ``sent``
        self._max_queue = limits.max_stream_queue

    @property
    def room(self) -> int:
        """Bytes that may be queued now; 0 or less means wait."""
        allowed = min(self._max_queue, self.limit - self.sent + _BLOCKED_QUEUE)
        return allowed - self.queued - _CHUNK_COST * len(self._unsent)

    def push(self, payload: Payload) -> None:
        """Queue ``payload``, which the caller must not change any more."""
        self.queued += len(payload)
        self._unsent.append(payload)

    def take(self, max_bytes: int) -> list[Payload]:
        """Return the next bytes to send, within ``max_bytes`` and credit, and retain them.

        Call only while something is queued and the credit has room. Small pieces are joined; large pieces
        come as they were pushed.
        """
        left = min(max_bytes, self.limit - self.sent)
        unsent, parts, taken = self._unsent, [], 0
        while unsent and left:
            payload = unsent.popleft()
            if len(payload) > left:
                view = memoryview(payload)
                unsent.appendleft(view[left:])
                payload = view[:left]
            parts.append(payload)
            left -= len(payload)
            taken += len(payload)
        if len(parts) > 1 and taken < _SMALL * len(parts):
            parts = [b"".join(parts)]
        self.sent += taken
        if self.sent > self.max_sent:
            self.max_sent = self.sent
        self.queued -= taken
        self._retained.extend(parts)
        return parts

    def ack(self, offset: int) -> int:
        """Record that the peer has all bytes before ``offset``. Return how many bytes that freed."""
        freed = offset - self.acked
        if freed <= 0:
            return 0
        self.acked = offset
        retained, left = self._retained, freed
        while left:
            payload = retained.popleft()
            if len(payload) > left:
                retained.appendleft(memoryview(payload)[left:])
                break
            left -= len(payload)
        return freed

    def take_back(self) -> int:
        """Queue all unacknowledged bytes again, because their carrier is lost. Return how many they are."""
        unacked = self.sent - self.acked
        self._unsent.extendleft(reversed(self._retained))
        self._retained.clear()
        self.sent = self.acked
        self.queued += unacked
        return unacked

    @property
    def retained_bytes(self) -> int:
        """Bytes that were sent at least once and are not acknowledged, queued again or not."""
        return self.max_sent - self.acked

    def drop(self) -> None:
        """Discard all queued and retained bytes, for a reset."""
        self._unsent.clear()
        self._retained.clear()
        self.queued, self.acked, self.sent = 0, self.max_sent, self.max_sent
