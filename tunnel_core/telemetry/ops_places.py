"""Which connections the ``[ops]`` listener holds, and which one gives way when it is full. No I/O.

A watchdog restarts a program whose ``/healthz`` does not answer. So no number of connections may keep a
probe out:

1. Of ``MAX_CONNECTIONS`` places, one whose connection waits for its peer for ``MIN_IDLE_SECONDS`` goes to a
   newcomer: of the source with the most places, the connection that waited longest. A source gets no place
   from one that holds fewer or as many.
2. Beyond that, ``PROBE_PLACES`` answer the probes only. There a connection gives way without a minimum.
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
    """The place of one connection. It begins idle: the connection has yet to send a request."""

    def __init__(self, places: Places, source: str, *, is_for_probes: bool) -> None:
        self.source = source
        self.is_for_probes = is_for_probes
        self.idle_since: float | None = None
        """Since when the connection waits for its peer; None while a request is served."""
        self.on_evicted: Callable[[], None] = lambda: None
        """Called when the place is given to another connection; closes this one."""
        self.was_evicted = False
        self._places = places
        self.idle()

    def idle(self) -> None:
        """The connection waits for its peer from now on."""
        self.idle_since = self._places.clock()

    def busy(self) -> None:
        """A request is served, so the place is not taken away."""
        self.idle_since = None

    def leave(self) -> None:
        """The connection is closed. Idempotent."""
        self._places.discard(self)


class Places:
    """The places of one listener. ``clock`` gives steady seconds."""

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
        """In the order of their arrival, by whether they are for probes only."""

    def take(self, source: str) -> Place | None:
        """Return a place for a connection from ``source``; None if no connection gives way to it."""
        for is_for_probes, taken in self._taken.items():
            if len(taken) >= self._most[is_for_probes]:
                self._evict_for(source, is_for_probes)
            if len(taken) < self._most[is_for_probes]:
                place = Place(self, source, is_for_probes=is_for_probes)
                taken[place] = None
                return place
        return None

    def discard(self, place: Place) -> None:
        """Free the place; for :class:`Place`."""
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
