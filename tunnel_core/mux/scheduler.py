"""Whose turn it is: deficit round robin with FQ-CoDel's two lists (RFC 8290 §4.2). No I/O, no clock.

1. A stream that had nothing queued enters ``new`` and gets a small quantum at once; what is left after
   that waits its turn in ``old``. So a keystroke overtakes bulk, and bulk in small writes cannot pose as
   keystrokes: it gets the small quantum once per round. None starves. A stream stands in one list at
   most; one without credit in none.
2. Two budgets, because the flight limit (``congestion/controller.py``) holds bulk back and lets quick bytes
   pass: ``new`` is served while there is ``quick``, ``old`` while there is ``bulk``. What either takes counts
   for both.
3. Quanta follow the packets: on a slow link a packet is small, and a turn of 256 KiB would be a second.
4. Mere ends cost nothing and wait for no budget.
"""

from __future__ import annotations

from collections import deque

from tunnel_core.limits import KIB
from tunnel_core.mux.stream_state import StreamState

_NEW_QUANTUM = 16 * KIB
_OLD_QUANTUM = 256 * KIB
_LEAST_QUANTUM = 2 * KIB


class StreamScheduler:
    """The streams of one session that have something to send."""

    __slots__ = ("_quantum", "_queue", "ends", "new", "old")

    def __init__(self) -> None:
        self.ends: dict[StreamState, None] = {}
        """Streams that have nothing left to say but their end."""
        self.new: deque[StreamState] = deque()
        """Streams that wait to send data, and had nothing queued before."""
        self.old: deque[StreamState] = deque()
        """Streams that wait to send data, after a turn of theirs."""
        self._queue = self.new  # where the stream of this turn stands
        self._quantum = _OLD_QUANTUM

    def __len__(self) -> int:
        return len(self.new) + len(self.old)

    def clear(self) -> None:
        self.ends.clear()
        self.new.clear()
        self.old.clear()

    def add(self, stream: StreamState) -> None:
        """A stream that stands in no list has data to send."""
        stream.listed = True
        stream.deficit = min(_NEW_QUANTUM, self._quantum)
        self.new.append(stream)

    def demote(self) -> None:
        """All streams are new again, as their carrier was lost: those that are known to be bulk are not."""
        bulk = [stream for stream in self.new if stream.send.queued > _NEW_QUANTUM]
        self.new = deque(stream for stream in self.new if stream not in bulk)
        for stream in bulk:
            stream.deficit = _LEAST_QUANTUM  # the last quantum was that of another link
        self.old.extend(bulk)

    def can_send(self, bulk: int, quick: int) -> bool:
        """Whether these budgets let anybody send."""
        return bool((self.new and quick > 0) or (self.old and bulk > 0))

    def start_packet(self, bulk: int) -> None:
        """A packet begins that may hold so much."""
        if bulk > 0:
            self._quantum = max(_LEAST_QUANTUM, min(_OLD_QUANTUM, bulk))

    def next(self, bulk: int, quick: int) -> tuple[StreamState, int] | None:
        """Whose turn it is, and how many bytes may be taken; tell ``charge`` afterwards."""
        if self.new and quick > 0:
            queue, room = self.new, quick
            alone = max(bulk, min(quick, _NEW_QUANTUM))  # quick budget is not for whoever is alone
        elif self.old and bulk > 0:
            queue, room, alone = self.old, bulk, bulk
        else:
            return None
        self._queue, stream = queue, queue[0]
        if len(self.new) + len(self.old) == 1:
            stream.deficit = room = alone  # nobody waits: one frame instead of two
        return stream, min(room, stream.deficit)

    def postpone(self, stream: StreamState) -> None:
        """The stream of this turn may take nothing now: it goes behind all others."""
        self._queue.popleft()
        stream.deficit = self._quantum
        self.old.append(stream)

    def charge(self, stream: StreamState, taken: int, bulk: int) -> None:
        """The stream of this turn took so many bytes; ``bulk`` is what was left before."""
        queue = self._queue
        stream.deficit -= taken
        if not stream.wants_turn:
            queue.popleft()
            if queue is self.new and self.old:
                # Behind the old ones once, so that it cannot come back at once as new.
                stream.deficit = self._quantum
                self.old.append(stream)
            else:
                stream.listed = False
        elif stream.deficit <= 0:
            queue.popleft()
            stream.deficit = max(self._quantum, bulk // (len(self.old) + 1))
            self.old.append(stream)
