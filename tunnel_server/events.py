"""What befell the nodes, newest last: a bounded ring that can be read from any point and followed.

Ids rise by one, and go on rising when the server starts again: the first of a run is the time in
milliseconds, and no server notes a thousand events a second for long. So a follower's last id keeps its
meaning over a restart without anything being stored. A clock that was set back makes ids smaller than
what a follower has; it then gets the whole ring, since all of that is new to it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias, get_args

import trio

from tunnel_core.counters import Counters
from tunnel_core.reasons import Reason, Refused

Kind: TypeAlias = Literal["attached", "lost", "resumed", "taken_over", "expired", "duplicate", "ended"]

MAX_EVENTS = 10_000
"""All agents of a full server lost and back."""
MAX_FOLLOWERS = 64
_MAX_DETAIL = 512


class Event(NamedTuple):
    id: int
    at: datetime
    kind: Kind
    node: str
    reason: Reason | None
    detail: str


class Events:
    """The ring. ``wall`` gives UTC; ``counters`` counts the kinds. For the trio thread only."""

    def __init__(self, wall: Callable[[], datetime], counters: Counters, *, most: int = MAX_EVENTS) -> None:
        self._wall = wall
        self._counters = counters
        for kind in get_args(Kind):  # shown as 0, so that the first of a kind is a rise
            counters.node_events[kind] = 0
        self._ring: deque[Event] = deque(maxlen=most)
        self._last = int(wall().timestamp() * 1000)
        self._news = trio.Event()
        self._followers = 0

    @property
    def last(self) -> int:
        """The id of the newest event, or the one before the first."""
        return self._last

    def note(self, kind: Kind, node: str, reason: Reason | None = None, detail: str = "") -> None:
        """Something happened to ``node``, now."""
        self._last += 1
        self._ring.append(Event(self._last, self._wall(), kind, node, reason, detail[:_MAX_DETAIL]))
        self._counters.node_event(kind)
        self._news.set()
        self._news = trio.Event()

    def newest(self, most: int, node: str = "") -> list[Event]:
        """The last ``most`` events, of ``node`` if it is named, in their order."""
        wanted = (event for event in reversed(self._ring) if node in ("", event.node))
        return list(itertools.islice(wanted, most))[::-1]

    def since(self, after: int, most: int, node: str = "") -> list[Event]:
        """The first ``most`` events whose id is above ``after``, of ``node`` if it is named."""
        start = max(0, after - self._first + 1) if after <= self._last else 0
        newer = itertools.islice(self._ring, start, None)
        return list(itertools.islice((event for event in newer if node in ("", event.node)), most))

    def has_gap(self, after: int) -> bool:
        """Whether events between ``after`` and the oldest kept one may be gone."""
        return not self._first - 1 <= after <= self._last

    @property
    def _first(self) -> int:
        return self._last - len(self._ring) + 1

    async def wait_newer(self, after: int, node: str = "") -> None:
        """Waits for an event above ``after``, of ``node`` if it is named. Raises ``Refused``.

        At most ``MAX_FOLLOWERS`` wait at once, as each holds a connection that does nothing else.
        """
        if self._followers >= MAX_FOLLOWERS:
            detail = f"{MAX_FOLLOWERS} already follow the events; ask without wait"
            raise Refused(Reason.TOO_MANY_CONNECTIONS, detail)
        self._followers += 1
        try:
            while not self.since(after, 1, node):
                await self._news.wait()
        finally:
            self._followers -= 1
