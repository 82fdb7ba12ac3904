"""What happened to the nodes, most recent last: a bounded list that people list and follow. No I/O.

Ids rise by one for as long as the server runs, so whoever follows asks for what came after the last one
he saw, and sees by a gap that he was too slow.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from tunnel_core.reasons import Reason

MAX_EVENTS = 1_000


class Kind(enum.Enum):
    ATTACHED = "attached"
    LOST = "lost"
    RESUMED = "resumed"
    TAKEN_OVER = "taken_over"
    EXPIRED = "expired"
    ENDED = "ended"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class NodeEvent:
    id: int
    at: datetime
    kind: Kind
    node: str
    session_id: str
    reason: Reason | None = None
    detail: str = ""


class Events:
    """``on_event`` is called for each new one; it must not block or raise."""

    def __init__(self, wall: Callable[[], datetime]) -> None:
        self.on_event: Callable[[NodeEvent], None] | None = None
        self._wall = wall
        self._events: deque[NodeEvent] = deque(maxlen=MAX_EVENTS)
        self._last_id = 0

    def add(
        self, kind: Kind, node: str, session_id: str, reason: Reason | None = None, detail: str = ""
    ) -> None:
        self._last_id += 1
        event = NodeEvent(self._last_id, self._wall(), kind, node, session_id, reason, detail)
        self._events.append(event)
        if self.on_event is not None:
            self.on_event(event)

    def after(self, last_id: int = 0, node: str = "") -> list[NodeEvent]:
        """Those that came after the one with this id, of one node or of all; the oldest first."""
        return [event for event in self._events if event.id > last_id and node in ("", event.node)]
