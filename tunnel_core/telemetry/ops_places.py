"""Connection slots of the ``[ops]`` listener, and the connection to evict when all are taken. No I/O.

A watchdog restarts a program whose ``/healthz`` does not answer. So no number of connections may keep a
probe out:

1. The listener has ``MAX_CONNECTIONS`` places. If all are taken, a new connection evicts one that has been
   idle for ``MIN_IDLE_SECONDS``: the longest idle connection of the source with the most places. A source
   evicts its own connections, and those of sources with more places than it has.
2. Beyond these, ``PROBE_PLACES`` answer the probes only. There an idle connection may be evicted at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

MAX_CONNECTIONS = 64
"""Connections of an ``[ops]`` listener."""
PROBE_PLACES = 8
"""Further connections that may only ask for the probes. A watchdog must not end a healthy program."""
MIN_IDLE_SECONDS = 1.0
"""Time for which a connection waits for its peer before it may give way. Above the round trip of any usual
network, so a client that sends its request gets an answer."""


class Place:
    """The place of one connection. A new place is idle, because the connection has sent no request yet."""

    def __init__(self, places: Places, source: str, *, is_for_probes: bool) -> None:
        self.source = source
        self.is_for_probes = is_for_probes
        self.idle_since: float | None = None
        """When the connection began to wait for its client; None while a request is served."""
        self.on_evicted: Callable[[], None] = lambda: None
        """Closes this connection; called when another connection gets the place."""
        self.was_evicted = False
        self._places = places
        self.idle()

    def idle(self) -> None:
        """Mark the connection as waiting for its client, which allows its eviction."""
        self.idle_since = self._places.clock()

    def busy(self) -> None:
        """Mark the connection as serving a request, which forbids its eviction."""
        self.idle_since = None

    def leave(self) -> None:
        """Free the place after the connection has closed. Idempotent."""
        self._places.discard(self)


class Places:
    """The places of one listener. ``clock`` returns seconds of a steady clock."""

    def __init__(
        self,
        clock: Callable[[], float],
        most: int = MAX_CONNECTIONS,
        for_probes: int = PROBE_PLACES,
        min_idle_seconds: float = MIN_IDLE_SECONDS,
    ) -> None:
        self.clock = clock
        self._most = {False: most, True: for_probes}
        self._min_idle = {False: min_idle_seconds, True: 0.0}
        self._taken: dict[bool, dict[Place, None]] = {False: {}, True: {}}
        """Taken places by whether they are for probes only, in order of arrival."""

    def take(self, source: str) -> Place | None:
        """Return a place for a connection from ``source``; None if there is none and none can be evicted."""
        for is_for_probes, taken in self._taken.items():
            if len(taken) >= self._most[is_for_probes]:
                self._evict_for(source, is_for_probes)
            if len(taken) < self._most[is_for_probes]:
                place = Place(self, source, is_for_probes=is_for_probes)
                taken[place] = None
                return place
        return None

    def discard(self, place: Place) -> None:
        """Free the place. Only :class:`Place` calls this."""
        self._taken[place.is_for_probes].pop(place, None)

    def _evict_for(self, source: str, is_for_probes: bool) -> None:
        taken, latest = self._taken[is_for_probes], self.clock() - self._min_idle[is_for_probes]
        counts = Counter(place.source for place in taken)
        idle = [
            (counts[place.source], -place.idle_since, place)
            for place in taken
            if place.idle_since is not None and place.idle_since <= latest
            if place.source == source or counts[place.source] > counts[source]
        ]
        if idle:
            victim = max(idle, key=lambda found: found[:2])[2]
            victim.was_evicted = True
            victim.leave()
            victim.on_evicted()
