"""The order in which streams send: deficit round robin with the two lists of FQ-CoDel. No I/O, no clock.

1. The lists are those of RFC 8290 §4.2. A stream that had nothing queued enters ``new`` and gets a small
   quantum at once. Its remaining bytes wait for a turn in ``old``. So a keystroke overtakes bulk, and no
   stream starves. Bulk in small writes gets the small quantum once a round, so it cannot pass as keystrokes.
   A stream is in at most one list, without credit in none.
2. There are two budgets, because the in-flight limit (``congestion/controller.py``) holds bulk back and lets
   priority bytes pass. ``new`` is served within ``priority``, ``old`` within ``bulk``. Bytes taken from
   either list count for both.
3. Quanta follow the packet size, because on a slow link packets are small and a turn of 256 KiB takes a
   second.
4. Ends without data cost nothing and wait for no budget.
"""

from __future__ import annotations

from collections import deque

from tunnel_core.limits import KIB
from tunnel_core.mux.stream_state import StreamState

_NEW_QUANTUM = 16 * KIB
_OLD_QUANTUM = 256 * KIB
_MIN_QUANTUM = 2 * KIB


class StreamScheduler:
    """The streams of one session that have something to send."""

    __slots__ = ("_quantum", "_queue", "ends", "new", "old")

    def __init__(self) -> None:
        self.ends: dict[StreamState, None] = {}
        """Streams that have only their end left to send."""
        self.new: deque[StreamState] = deque()
        """Streams that wait to send data and had nothing queued before."""
        self.old: deque[StreamState] = deque()
        """Streams that wait to send data and had a turn already."""
        self._queue = self.new  # the list of the stream that has the turn
        self._quantum = _OLD_QUANTUM

    def __len__(self) -> int:
        return len(self.new) + len(self.old)

    def clear(self) -> None:
        """Remove all streams from all lists."""
        self.ends.clear()
        self.new.clear()
        self.old.clear()

    def add(self, stream: StreamState) -> None:
        """Add a stream that is in no list and has data to send."""
        stream.listed = True
        stream.deficit = min(_NEW_QUANTUM, self._quantum)
        self.new.append(stream)

    def demote(self) -> None:
        """Move bulk from ``new`` to ``old``, after a lost carrier made all streams new again."""
        bulk = [stream for stream in self.new if stream.send.queued > _NEW_QUANTUM]
        self.new = deque(stream for stream in self.new if stream not in bulk)
        for stream in bulk:
            stream.deficit = _MIN_QUANTUM  # the last quantum was sized for another link
        self.old.extend(bulk)

    def can_send(self, bulk: int, priority: int) -> bool:
        """Whether these budgets, in bytes, let any stream send."""
        return bool((self.new and priority > 0) or (self.old and bulk > 0))

    def start_packet(self, bulk: int) -> None:
        """Size the quanta for a packet that may hold ``bulk`` bytes."""
        if bulk > 0:
            self._quantum = max(_MIN_QUANTUM, min(_OLD_QUANTUM, bulk))

    def next(self, bulk: int, priority: int) -> tuple[StreamState, int] | None:
        """Return the stream that has the turn and its bytes, or None. Call ``charge`` afterwards."""
        if self.new and priority > 0:
            queue, room = self.new, priority
            sole_budget = max(bulk, min(priority, _NEW_QUANTUM))  # a sole stream needs no priority
        elif self.old and bulk > 0:
            queue, room, sole_budget = self.old, bulk, bulk
        else:
            return None
        self._queue, stream = queue, queue[0]
        if len(self.new) + len(self.old) == 1:
            stream.deficit = room = sole_budget  # no other stream waits, so one frame does instead of two
        return stream, min(room, stream.deficit)

    def postpone(self, stream: StreamState) -> None:
        """Put the stream that has the turn behind all others, because it may send nothing now."""
        self._queue.popleft()
        stream.deficit = self._quantum
        self.old.append(stream)

    def charge(self, stream: StreamState, taken: int, bulk: int) -> None:
        """Charge ``taken`` bytes to the stream that has the turn. ``bulk``: that budget before this turn."""
        queue = self._queue
        stream.deficit -= taken
        if not stream.wants_turn:
            queue.popleft()
            if queue is self.new and self.old:
                # Behind the old streams once, so that the stream cannot become new at once.
                stream.deficit = self._quantum
                self.old.append(stream)
            else:
                stream.listed = False
        elif stream.deficit <= 0:
            queue.popleft()
            stream.deficit = max(self._quantum, bulk // (len(self.old) + 1))
            self.old.append(stream)
