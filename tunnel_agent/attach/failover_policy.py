"""Decide when an agent tries another carrier, and when its session moves. No I/O, clock or randomness.

1. Trouble means that the session has no carrier, that an answer is late, or that the route changed. Trouble
   only starts attempts beside the present carrier, because copies must not flood a congested network.
2. Young trouble: the policy starts an attempt every one to two seconds (metered: 3 to 7). An agent that
   waits for TCP's back-off comes back seconds late. At most two attempts run at once. A third replaces
   the younger one, because the older one may belong to a slow path. No attempt replaces a connected one,
   because its answer is under way. The interval grows with the round trip, or the agent would never reach
   a server over a satellite. The growth has a bound: one pong that waited through an outage must not stop
   the attempts.
3. Old trouble: one attempt at a time, with full jitter and a cap, because the network or the server is away.
   A fleet must not come back in one instant.
4. Make before break. The session moves to a welcomed attempt if the old carrier is gone, brought nothing
   since the attempt began, or *is backlogged*. Backlogged means that an answer was late before the attempt
   began and still is. A new connection takes five round trips through every queue of the network. So the
   backlog is the old carrier's own, such as megabytes that TCP accepted at the speed of a former network. In
   any other case the attempt is dropped, because the old carrier is alive, however slow. Moves away from a
   backlogged carrier are rare, because each move retransmits the data in flight.
5. A session without a carrier has no alternative, so the agent decides as soon as it reaches the server.
   The hello carries ``use``, which saves the streams a round trip. Such an attempt is *bound*. Another
   attempt is bound only after the bound one has failed, so that the server never receives ``use`` twice.
   The other attempts continue, and the session moves to one that is welcomed first. No attempt is bound
   while the old carrier may be alive, because a slow server accepts connections before it answers pings.
6. While one answer is late but other packets arrive, one attempt in ten seconds finds out whether the
   carrier is backlogged. The faster attempts of rule 2 are for silence.
7. ``SessionFailover`` throttles a late carrier while an attempt runs beside it. Otherwise the bytes that TCP
   accepted fill the queue of a thin network, where the attempt's packets wait and are dropped.
8. The end of trouble abandons the attempts under way. Trouble soon after is the same trouble, unless the
   session has moved: then network and server worked, and the next trouble is young.
9. ``refresh`` replaces a carrier without a fault, because it presents a certificate that has a successor.
   The policy makes one attempt at a time at a slow pace, and the session moves to the first welcomed one. A
   move for another reason also completes the refresh, if its attempt began after ``refresh``.
10. ``path_returned`` starts an attempt at once, because the attempts under way wait for TCP's back-off. While
    ``may_probe``, ``path_probe.py`` watches for that moment: in young trouble without a connected attempt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

QUICK_SECONDS = 30.0
"""Time for which trouble is young, with quick attempts."""
CALM_SECONDS = 30.0
"""Time without trouble after which the next trouble counts as young."""
_MEAN_CHANCE = 0.5
_MAX_ATTEMPTS = 2
"""Attempts to move or resume a session that are under way at once."""
_ROUTE_SECONDS = 5.0
"""Time between two attempts for a changed route."""
_FIRST_WINDOW_SECONDS = 2.0
_REFRESH_FIRST_SECONDS, _REFRESH_LAST_SECONDS = 2.0, 60.0
_BACKLOGGED_SECONDS = 10.0
"""Time between two attempts beside a carrier that still delivers something, and from a move to the next
attempt."""


class Start(NamedTuple):
    """Begin attempt ``number``, which fails after ``response_timeout_seconds``."""

    number: int
    response_timeout_seconds: float


class Abandon(NamedTuple):
    """Abandon attempt ``number``."""

    number: int


Action: TypeAlias = Start | Abandon


@dataclass(frozen=True, slots=True)
class CarrierStatus:
    """State of the session's carrier.

    ``last_received_at``: when the carrier last brought a packet; -inf without a carrier. ``answer_seconds``:
    how long an answer may take before it is late. ``late_since``: when the oldest late packet was sent; inf
    if none is late.
    """

    lost: bool
    silent: bool
    last_received_at: float
    answer_seconds: float
    late_since: float = math.inf


@dataclass(slots=True)
class _Attempt:
    began_at: float
    connected: bool = False


class FailoverPolicy:
    """Attempts of one session. The caller calls ``poll`` at ``due`` and after every event.

    ``response_timeout_seconds``: time after which an attempt fails. ``max_wait_seconds``: the cap of the
    back-off. ``attempt_seconds``: mean time between two attempts while the trouble is young. All times are in
    seconds of one clock.
    """

    def __init__(
        self, *, response_timeout_seconds: float, max_wait_seconds: float, attempt_seconds: float = 1.5
    ) -> None:
        self._interval = attempt_seconds / (1 + _MEAN_CHANCE)
        self._response_timeout = response_timeout_seconds
        self._max_wait = max_wait_seconds
        self._under_way: dict[int, _Attempt] = {}  # oldest first
        self._bound: int | None = None  # the attempt whose hello carries use
        self._last_number = 0
        self._next_at = self._started_at = -math.inf
        self._trouble_began_at: float | None = None
        self._calm_since = -math.inf
        self._moved_at = self._next_beside_at = -math.inf
        self._in_trouble = False
        self._one_at_a_time = False  # the next attempt begins when the one under way has ended
        self._was_lost = False
        self._window = _FIRST_WINDOW_SECONDS
        self._route_at = -math.inf
        self._route_changed = False
        self._refresh_at = math.inf  # when the next attempt of a refresh may begin; inf without a refresh
        self._refresh_window = _REFRESH_FIRST_SECONDS
        self._first_fresh = 0  # attempts from this number on present the new certificate
        self._is_fresh = False  # whether the attempt that was welcomed last completes a refresh

    @property
    def due(self) -> float:
        """When to call ``poll`` if no event comes first. Never in the past after ``poll``."""
        next_at = self._next_at if self._in_trouble and not self._one_at_a_time else math.inf
        return next_at if self._under_way else min(next_at, self._refresh_at)

    def refresh(self) -> None:
        """Ask for a carrier that is newer than this call. The next ``poll`` starts the attempt."""
        self._refresh_at, self._refresh_window = -math.inf, _REFRESH_FIRST_SECONDS
        self._first_fresh = self._last_number + 1

    @property
    def is_trying(self) -> bool:
        """Whether any attempt is under way."""
        return bool(self._under_way)

    def route_changed(self) -> None:
        """Note that the route to the server changed. The next ``poll`` acts on it."""
        self._route_changed = True

    def may_probe(self, now: float, carried: CarrierStatus) -> bool:
        """Whether to watch for the return of a path that seems dead."""
        is_dead = self._in_trouble and (carried.lost or carried.silent)
        return is_dead and self._is_young(now) and len(self._unconnected) == len(self._under_way)

    def path_returned(self, since: float) -> None:
        """Note that a dead path carries packets sent at ``since``. The next ``poll`` acts on it."""
        attempts = self._under_way.values()
        if not any(attempt.connected or attempt.began_at >= since for attempt in attempts):
            self._next_at = min(self._next_at, since)

    @property
    def refreshes(self) -> bool:
        """Whether the attempt that was welcomed last completes a refresh."""
        return self._is_fresh

    def poll(self, now: float, carried: CarrierStatus, chance: float) -> list[Action]:
        """Return the actions due at ``now``. ``chance`` is a random number from 0 to 1."""
        changed, self._route_changed = self._route_changed and now >= self._route_at + _ROUTE_SECONDS, False
        if changed:
            self._route_at = now
            # Attempts that are not connected yet use the old route.
            return [*self._abandon(self._unconnected), *self._start(now, carried, chance)]
        if now >= self._refresh_at and not self._under_way:
            self._refresh_at = now + self._refresh_window * (1 + chance)
            self._refresh_window = min(_REFRESH_LAST_SECONDS, 2 * self._refresh_window)
            if not carried.lost:  # without a carrier the trouble below starts an attempt
                return self._start(now, carried, chance)
        if not carried.lost and not carried.silent:
            is_late = carried.late_since < math.inf
            return self._try_beside(now, carried, chance) if is_late else self._calm_down(now)
        self._note_trouble(now, carried)
        self._one_at_a_time = bool(self._under_way) and not self._is_young(now)
        if now < self._next_at or self._one_at_a_time:
            return []
        return self._start(now, carried, chance)

    def _try_beside(self, now: float, carried: CarrierStatus, chance: float) -> list[Action]:
        """Try another carrier because an answer is late, although other packets arrive."""
        self._note_trouble(now, carried)
        self._one_at_a_time = True
        if self._under_way or now < max(self._next_beside_at, self._moved_at + _BACKLOGGED_SECONDS):
            return []
        self._next_beside_at = now + _BACKLOGGED_SECONDS
        return self._start(now, carried, chance)

    def _note_trouble(self, now: float, carried: CarrierStatus) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            if self._trouble_began_at is None or now >= self._calm_since + CALM_SECONDS:
                self._trouble_began_at, self._window = now, _FIRST_WINDOW_SECONDS
                self._next_at = max(now, self._started_at + self._interval)
        if carried.lost and not self._was_lost and self._is_young(now):
            # At once, because a lost carrier cannot recover by itself; but not in a tight loop.
            self._next_at = min(self._next_at, max(now, self._started_at + self._interval))
        self._was_lost = carried.lost

    def _calm_down(self, now: float) -> list[Action]:
        self._was_lost = False
        if not self._in_trouble:
            return []
        self._in_trouble, self._calm_since = False, now
        return self._abandon_all()

    def _is_young(self, now: float) -> bool:
        return self._trouble_began_at is None or now < self._trouble_began_at + QUICK_SECONDS

    def _start(self, now: float, carried: CarrierStatus, chance: float) -> list[Action]:
        self._schedule(now, carried, chance)
        replaced = self._abandon(self._unconnected[-1:]) if len(self._under_way) >= _MAX_ATTEMPTS else []
        if len(self._under_way) >= _MAX_ATTEMPTS:
            return []
        self._last_number += 1
        self._under_way[self._last_number] = _Attempt(now)
        self._started_at = now
        return [*replaced, Start(self._last_number, self._response_timeout)]

    @property
    def _unconnected(self) -> list[int]:
        """Numbers of the attempts that are not connected, oldest first."""
        return [number for number, attempt in self._under_way.items() if not attempt.connected]

    def _schedule(self, now: float, carried: CarrierStatus, chance: float) -> None:
        """Set when the next attempt is due."""
        if self._is_young(now):
            stretched = min(carried.answer_seconds, self._response_timeout / _MAX_ATTEMPTS)
            self._next_at = now + max(self._interval, stretched) * (1 + chance)
            return
        self._next_at = now + self._window * chance
        self._window = min(self._max_wait, 2 * self._window)

    def failed(self, number: int) -> None:
        """Forget attempt ``number``, which failed or was abandoned."""
        self._under_way.pop(number, None)
        if self._bound == number:
            self._bound = None

    def connected(self, number: int, carried: CarrierStatus) -> bool:
        """Whether attempt ``number``, now connected, is bound: its hello then carries ``use``."""
        attempt = self._under_way.get(number)
        if attempt is None:
            return False
        attempt.connected = True
        if self._bound is not None or not carried.lost:
            return False
        self._bound = number
        return True

    def welcomed(self, number: int, carried: CarrierStatus) -> bool:
        """Whether the session moves to attempt ``number``. If not, the caller abandons the attempt."""
        attempt = self._under_way.pop(number, None)
        if attempt is None:
            return False
        self._is_fresh = self._refresh_at < math.inf and number >= self._first_fresh
        return number == self._bound or self._is_fresh or self._is_better(attempt, carried)

    def _is_better(self, attempt: _Attempt, carried: CarrierStatus) -> bool:
        began_at = attempt.began_at
        is_backlogged = carried.late_since < began_at and began_at > self._moved_at + _BACKLOGGED_SECONDS
        return carried.lost or carried.last_received_at < began_at or is_backlogged

    def moved(self, now: float) -> list[Action]:
        """Note that the session moved to a new carrier; return the attempts to abandon."""
        self._in_trouble, self._was_lost = False, False
        self._trouble_began_at, self._moved_at = None, now
        if self._is_fresh:
            self._refresh_at, self._is_fresh = math.inf, False
        return self._abandon_all()

    def _abandon_all(self) -> list[Action]:
        self._bound = None
        return self._abandon(list(self._under_way))

    def _abandon(self, numbers: list[int]) -> list[Action]:
        for number in numbers:
            del self._under_way[number]
        return [Abandon(number) for number in numbers]
