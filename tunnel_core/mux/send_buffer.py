"""The sending half of a stream: bytes that are queued, sent, or retained until the peer confirms them.

No I/O, no clock. Offsets count bytes of the stream from 0. The half retains what it sent, because
resumption sends content again.
"""

from __future__ import annotations

from collections import deque

from tunnel_core.limits import KIB, Limits
from tunnel_core.wire.frames import Payload

_SMALL = 2 * KIB
"""Chunks below this size are joined: an object of its own would cost more than what it holds."""
_BLOCKED_QUEUE = 64 * KIB
"""What a stream may queue beyond its credit: the next grant finds something to send."""
_CHUNK_COST = 64
"""Bytes that a queued chunk costs besides its content, so that tiny writes are bounded too."""


class SendBuffer:
    """Bytes on their way to the peer: queued, sent, confirmed."""

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
        self.limit = credit  # absolute offset up to which the peer lets us send
        self.sent = 0
        self.max_sent = 0  # the highest that ``sent`` ever was
        self.acked = 0
        self.queued = 0  # bytes accepted and not yet sent
        self.size: int | None = None  # final size once nothing more will be queued
        self._unsent: deque[Payload] = deque()
        self._retained: deque[Payload] = deque()  # from ``acked`` to ``sent``
        self._max_queue = limits.max_stream_queue

    @property
    def room(self) -> int:
        """Bytes that may be queued now; not positive means: wait."""
        allowed = min(self._max_queue, self.limit - self.sent + _BLOCKED_QUEUE)
        return allowed - self.queued - _CHUNK_COST * len(self._unsent)

    def push(self, payload: Payload) -> None:
        """Queues ``payload``, which must not change any more."""
        self.queued += len(payload)
        self._unsent.append(payload)

    def take(self, max_bytes: int) -> list[Payload]:
        """The next bytes to send, at most ``max_bytes`` and what the credit allows; keeps them.

        Call only while something is queued and the credit has room. What is small is joined; large pieces
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

    def confirm(self, offset: int) -> int:
        """The peer has everything before ``offset``. Returns the bytes that need not be kept any more."""
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
        """What is not confirmed counts as not sent again: the carrier that took it is lost.

        Returns how many bytes that are.
        """
        back = self.sent - self.acked
        self._unsent.extendleft(reversed(self._retained))
        self._retained.clear()
        self.sent = self.acked
        self.queued += back
        return back

    @property
    def retained_bytes(self) -> int:
        """Bytes that left once and must be kept, taken back or not."""
        return self.max_sent - self.acked

    def drop(self) -> None:
        """Forgets everything queued or kept (a reset)."""
        self._unsent.clear()
        self._retained.clear()
        self.queued, self.acked, self.sent = 0, self.max_sent, self.max_sent
