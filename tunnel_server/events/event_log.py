"""Bounded log of node events, oldest first; readers resume from an event id. No I/O.

Each kind of event of each node has a share of the log. Beyond the share the oldest event of that kind and
node is removed, so a busy node removes its own events and no others.

Ids rise by one within a run, and from run to run. The first id of a run is the time in milliseconds, or above
the newest restored id. The time suffices, because no server adds a thousand events a second for long. A
subscriber's last id therefore stays valid over a restart, even if no event was stored. After a clock was set
back, new ids may be below the subscriber's id. The subscriber then receives all events.

The events of earlier runs are restored before the first event of this run.
"""

from __future__ import annotations

import enum
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from tunnel_core.humanize import as_iso
from tunnel_core.reasons import Reason
from tunnel_core.tally import Tally

MAX_EVENTS = 10_000
"""Events of nodes in memory: all agents of a full server lost and back."""
MAX_EVENTS_OF_NODE = 100
"""Events of one kind of one node: a hundredth of the log."""
_MAX_DETAIL = 512


class EventKind(enum.Enum):
    """The kind of an event. The values are words of the API and of the store."""

    ATTACHED = "attached"
    LOST = "lost"
    RESUMED = "resumed"
    TAKEN_OVER = "taken_over"
    EXPIRED = "expired"
    ENDED = "ended"
    DUPLICATE = "duplicate"
    FORGOTTEN = "forgotten"
    SERVER_STARTED = "server_started"
    SERVER_STOPPED = "server_stopped"


OF_SERVER = {EventKind.SERVER_STARTED, EventKind.SERVER_STOPPED}
"""Kinds of events of the server itself. The ``node`` of such an event is empty."""


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """One event, at a time in UTC. ``session_id`` is empty for an event without a session."""

    id: int
    at: datetime
    kind: EventKind
    node: str
    session_id: str
    reason: Reason | None = None
    detail: str = ""


class Events:
    """The log. ``wall`` gives UTC. ``most`` bounds all events, ``share`` those of one kind of one node."""

    def __init__(
        self, wall: Callable[[], datetime], *, most: int = MAX_EVENTS, share: int = MAX_EVENTS_OF_NODE
    ) -> None:
        self._subscribers: list[Callable[[NodeEvent], None]] = []
        self._wall = wall
        self._most = most
        self._share = share
        self._kept: deque[NodeEvent] = deque()  # ids rise, with holes
        self._counts: Tally[tuple[str, EventKind]] = Tally()
        self._removed_id = 0  # the highest id of all removed events
        self._last_id = int(wall().timestamp() * 1000)
        self._before_run = self._last_id

    def subscribe(self, on_event: Callable[[NodeEvent], None]) -> None:
        """Call ``on_event`` for each new event from now on. It must not block or raise."""
        self._subscribers.append(on_event)

    @property
    def last_id(self) -> int:
        """The id of the newest event; before the first event, one below the next id."""
        return self._last_id

    def restore(self, events: Sequence[NodeEvent]) -> None:
        """Add the events of earlier runs, oldest first. Call this before the first event of this run."""
        for event in events:
            self._append(event)
        self._last_id = self._before_run = max([self._last_id, *(event.id for event in events[-1:])])

    def add(
        self, kind: EventKind, node: str, session_id: str, reason: Reason | None = None, detail: str = ""
    ) -> None:
        """Add an event of ``node`` with the current time, and call the subscribers."""
        self._last_id += 1
        shortened = detail[:_MAX_DETAIL]
        event = NodeEvent(self._last_id, self._wall(), kind, node, session_id, reason, shortened)
        self._append(event)
        for on_event in self._subscribers:
            on_event(event)

    def _append(self, event: NodeEvent) -> None:
        key = event.node, event.kind
        if self._counts[key] >= self._share:
            self._remove(next(at for at, kept in enumerate(self._kept) if (kept.node, kept.kind) == key))
        elif len(self._kept) >= self._most:
            self._remove(0)
        self._kept.append(event)
        self._counts[key] += 1

    def _remove(self, index: int) -> None:
        event = self._kept[index]
        del self._kept[index]
        self._removed_id = max(self._removed_id, event.id)
        self._counts.take((event.node, event.kind))

    def newest(self, most: int, node: str = "") -> list[NodeEvent]:
        """Return the last ``most`` events, oldest first. An empty ``node`` selects all nodes."""
        wanted = (event for event in reversed(self._kept) if node in ("", event.node))
        return list(itertools.islice(wanted, most))[::-1]

    def after(self, last_id: int = 0, node: str = "", most: int = MAX_EVENTS) -> list[NodeEvent]:
        """Return the first ``most`` events after ``last_id``, oldest first. An empty ``node`` selects all
        nodes.

        An id above the newest one selects all events.
        """
        last_id = last_id if last_id <= self._last_id else 0
        newer = list(itertools.takewhile(lambda event: event.id > last_id, reversed(self._kept)))
        wanted = (event for event in reversed(newer) if node in ("", event.node))
        return list(itertools.islice(wanted, most))

    def has_gap(self, last_id: int) -> bool:
        """Whether the log may lack events after ``last_id``."""
        if last_id > self._last_id or last_id < self._removed_id:
            return True
        return last_id < self._before_run and all(event.id != last_id for event in self._kept)


def event_as_json(event: NodeEvent) -> dict[str, object]:
    """Return an event as the API lists it."""
    return {
        "id": event.id,
        "at": as_iso(event.at, "milliseconds"),
        "kind": event.kind.value,
        "node": event.node,
        "session": event.session_id,
        "reason": event.reason.word if event.reason else None,
        "detail": event.detail,
    }
