"""What befell the nodes, newest last: a bounded ring that can be read from any point. No I/O.

Each kind of event of each node has a share of the ring: beyond it the oldest of that kind and node goes, so
a node that is never quiet pushes out its own events and no others.

Ids rise by one, and go on rising when the server starts again: the first of a run is the time in
milliseconds, or above the newest that was restored; no server notes a thousand events a second for long.
So a follower's last id keeps its meaning over a restart, even where nothing was stored. A clock that was set
back makes ids smaller than what a follower has; it then gets all there is, since that is new to it.

What earlier runs have left is restored before the first event of this one.
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
"""Events of one kind of one node: a hundredth of the ring."""
_MAX_DETAIL = 512


class EventKind(enum.Enum):
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
"""What happened to the server itself; ``node`` of such an event is empty."""


@dataclass(frozen=True, slots=True)
class NodeEvent:
    id: int
    at: datetime
    kind: EventKind
    node: str
    session_id: str
    reason: Reason | None = None
    detail: str = ""


class Events:
    """The ring. ``wall`` gives UTC."""

    def __init__(
        self, wall: Callable[[], datetime], *, most: int = MAX_EVENTS, share: int = MAX_EVENTS_OF_NODE
    ) -> None:
        self._subscribers: list[Callable[[NodeEvent], None]] = []
        self._wall = wall
        self._most = most
        self._share = share
        self._kept: deque[NodeEvent] = deque()  # ids rise, with holes
        self._counts: Tally[tuple[str, EventKind]] = Tally()
        self._forgotten_id = 0  # the highest id of all removed events
        self._last_id = int(wall().timestamp() * 1000)
        self._before_run = self._last_id

    def subscribe(self, on_event: Callable[[NodeEvent], None]) -> None:
        """Call ``on_event`` for each new event from now on. It must not block or raise."""
        self._subscribers.append(on_event)

    @property
    def last_id(self) -> int:
        """Of the newest event, or one below what the first will have."""
        return self._last_id

    def restore(self, events: Sequence[NodeEvent]) -> None:
        """Puts the events of earlier runs, in their order, before the first of this one."""
        for event in events:
            self._keep(event)
        self._last_id = self._before_run = max([self._last_id, *(event.id for event in events[-1:])])

    def add(
        self, kind: EventKind, node: str, session_id: str, reason: Reason | None = None, detail: str = ""
    ) -> None:
        """Something happened to ``node``, now."""
        self._last_id += 1
        cut = detail[:_MAX_DETAIL]
        event = NodeEvent(self._last_id, self._wall(), kind, node, session_id, reason, cut)
        self._keep(event)
        for on_event in self._subscribers:
            on_event(event)

    def _keep(self, event: NodeEvent) -> None:
        whose = event.node, event.kind
        if self._counts[whose] >= self._share:
            self._forget(next(at for at, one in enumerate(self._kept) if (one.node, one.kind) == whose))
        elif len(self._kept) >= self._most:
            self._forget(0)
        self._kept.append(event)
        self._counts.add(whose)

    def _forget(self, place: int) -> None:
        event = self._kept[place]
        del self._kept[place]
        self._forgotten_id = max(self._forgotten_id, event.id)
        whose = event.node, event.kind
        self._counts.take(whose)

    def newest(self, most: int, node: str = "") -> list[NodeEvent]:
        """The last ``most`` events, of ``node`` if it is named, in their order."""
        wanted = (event for event in reversed(self._kept) if node in ("", event.node))
        return list(itertools.islice(wanted, most))[::-1]

    def after(self, last_id: int = 0, node: str = "", most: int = MAX_EVENTS) -> list[NodeEvent]:
        """The first ``most`` that came after the one with this id, of ``node`` if it is named."""
        last_id = last_id if last_id <= self._last_id else 0
        newer = list(itertools.takewhile(lambda event: event.id > last_id, reversed(self._kept)))
        wanted = (event for event in reversed(newer) if node in ("", event.node))
        return list(itertools.islice(wanted, most))

    def has_gap(self, last_id: int) -> bool:
        """Whether events between this one and the oldest kept one may be gone."""
        if last_id > self._last_id or last_id < self._forgotten_id:
            return True
        return last_id < self._before_run and all(event.id != last_id for event in self._kept)


def event_as_json(event: NodeEvent) -> dict[str, object]:
    """Return an event as answers of the API list it."""
    return {
        "id": event.id,
        "at": as_iso(event.at, "milliseconds"),
        "kind": event.kind.value,
        "node": event.node,
        "session": event.session_id,
        "reason": event.reason.word if event.reason else None,
        "detail": event.detail,
    }
