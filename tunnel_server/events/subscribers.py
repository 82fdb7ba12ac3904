"""Requests that wait for the next event: a bounded number, woken together. The events are counted too."""

from __future__ import annotations

import trio

from tunnel_core.reasons import Reason, Refused
from tunnel_core.tally import Tally
from tunnel_core.telemetry.counters import Counters
from tunnel_server.events.event_log import OF_SERVER, EventKind, Events, NodeEvent

MAX_SUBSCRIBERS = 64
"""Requests that wait for events at once. Each holds a connection."""
MAX_OF_USER = MAX_SUBSCRIBERS // 4
"""Requests of one user that wait for events at once: a quarter."""


class EventSubscribers:
    """Subscriber of ``events`` that wakes waiting requests and counts events. For the trio thread only."""

    def __init__(self, events: Events, counters: Counters) -> None:
        self.events = events
        self._counters = counters
        self._news = trio.Event()
        self._waiting: Tally[str] = Tally()
        for kind in EventKind:  # counters start at 0, so that the first event of a kind is a rise
            if kind not in OF_SERVER:
                counters.node_events[kind.value] = 0
        events.subscribe(self._on_event)

    def _on_event(self, event: NodeEvent) -> None:
        if event.kind not in OF_SERVER:
            self._counters.node_event(event.kind.value)
        self._news.set()
        self._news = trio.Event()

    async def wait_newer(self, last_id: int, node: str = "", user: str = "") -> None:
        """Wait for an event with an id above ``last_id``. An empty ``node`` selects all nodes.

        Raises ``Refused`` if ``MAX_SUBSCRIBERS`` requests wait, or ``MAX_OF_USER`` of this user. A
        cancellation frees the place.
        """
        if self._waiting.total() >= MAX_SUBSCRIBERS:
            detail = f"{MAX_SUBSCRIBERS} already follow the events; ask without wait"
            raise Refused(Reason.TOO_MANY_CONNECTIONS, detail)
        if self._waiting[user] >= MAX_OF_USER:
            detail = f"{user} already follows the events {MAX_OF_USER} times; end some, or ask without wait"
            raise Refused(Reason.TOO_MANY_OF_USER, detail)
        self._waiting[user] += 1
        try:
            while not self.events.after(last_id, node, 1):
                await self._news.wait()
        finally:
            self._waiting.take(user)
