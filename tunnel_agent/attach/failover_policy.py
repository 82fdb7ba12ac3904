"""When an agent tries another carrier for its session, and when it moves. No I/O, no clock, no chance.

1. Trouble is: no carrier, or something late, or a route that changed. It only starts attempts beside the
   carrier that is there; a congested link must not be flooded with copies.
2. Quick while the trouble is young: a new attempt every one to two seconds (metered: 3 to 7), because
   whoever waits for TCP's back-off comes back seconds late. At most two at a time; a third takes the
   place of the younger one, as the older one is for a way that turned out to be slow. One that is
   connected is replaced by none: its answer is under way. The stride stretches with the round trip, or a
   satellite would never be reached, up to a bound: one pong that sat out an outage must not keep the agent
   from trying.
3. Later one at a time, with full jitter and a cap: the network is away, or the server, and
   a fleet must not come back in one instant.
4. Make before break. An attempt that was welcomed is used only if the old carrier is gone, or brought
   nothing since the attempt began, or *is backlogged*: something that was late before the attempt began still
   is. A new connection takes five round trips through whatever queue the network has; so the old one's
   is its own, such as megabytes that TCP took in at the speed of a network that was left. Otherwise it
   is dropped: the old one is alive, however slow. A drowning one is left once in a while only, since
   each move says again what was under way.
5. A session without a carrier has nothing to stay with, so the choice can be made as soon as the server is
   reached: the hello says ``use``, which spares the streams a round trip. Such an attempt is *bound*. The
   next may be only when it has failed, so that the server never hears two; the others go on as they are,
   and one that is welcomed before is used. While the old carrier may live this is not done: a server that
   is merely slow takes connections before it answers pings.
6. While something is late though other things are heard, one attempt in ten seconds finds out whether the
   carrier drowns: the others of rule 2 are for silence.
7. A carrier that is late is held back while anything is tried beside it (whoever acts for us sees to it):
   else what TCP took in fills the queue of a thin link, in which the attempt's packets wait and are dropped.
8. Trouble that is over abandons what is under way. What comes soon after is the same trouble, unless the
   session has moved: then network and server were there, and the next trouble is as young as any.
9. A carrier may have to be replaced though nothing is wrong with it (``refresh``): it shows a certificate
   that another one has followed. Then one attempt at a time is made without haste, and used when it is
   welcomed; whatever else moves the session to a carrier that began since then will do, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

QUICK_SECONDS = 30.0
"""Time for which trouble is young, with quick attempts."""
CALM_SECONDS = 30.0
"""Without trouble for so long, the next one is a new one."""
_MEAN_CHANCE = 0.5
_AT_ONCE = 2
"""Attempts to move or resume a session that are under way at once."""
_ROUTE_SECONDS = 5.0
"""Time between two attempts for a changed route."""
_FIRST_WINDOW_SECONDS = 2.0
_REFRESH_FIRST_SECONDS, _REFRESH_LAST_SECONDS = 2.0, 60.0
_DROWNING_SECONDS = 10.0
"""Time between two attempts beside a carrier that still delivers something, and from a move to the next
attempt."""


class Start(NamedTuple):
    """Begin attempt ``number``, and give it so long."""

    number: int
    response_timeout_seconds: float


class Abandon(NamedTuple):
    number: int


Action: TypeAlias = Start | Abandon


@dataclass(frozen=True, slots=True)
class CarrierStatus:
    """How the session stands.

    ``last_received_at``: when its carrier last brought anything; -inf without one. ``answer_seconds``: how
    long an answer may take before it is late. ``late_since``: when the oldest of what is late was sent; inf
    if nothing is.
    """

    lost: bool
    quiet: bool
    last_received_at: float
    answer_seconds: float
    late_since: float = math.inf


@dataclass(slots=True)
class _UnderWay:
    began: float
    connected: bool = False


class FailoverPolicy:
    """The attempts of one session. Call ``poll`` when ``due`` says so, and whenever something happened.

    ``attempt_seconds``: between two of them while the trouble is young, in the mean.
    """

    def __init__(
        self, *, response_timeout_seconds: float, max_wait_seconds: float, attempt_seconds: float = 1.5
    ) -> None:
        self._stride = attempt_seconds / (1 + _MEAN_CHANCE)
        self._patience = response_timeout_seconds
        self._max_wait = max_wait_seconds
        self._under_way: dict[int, _UnderWay] = {}  # oldest first
        self._bound: int | None = None  # whose hello said use
        self._last_number = 0
        self._next_at = self._started_at = -math.inf
        self._began_at: float | None = None  # the trouble, unless there has been calm for long since
        self._calm_since = -math.inf
        self._moved_at = self._beside_at = -math.inf
        self._in_trouble = False
        self._awaits_one = False  # the next begins when the one under way has ended
        self._was_lost = False
        self._window = _FIRST_WINDOW_SECONDS
        self._route_at = -math.inf
        self._route_changed = False
        self._refresh_at = math.inf  # when the next attempt for it may begin; inf if none is wanted
        self._refresh_window = _REFRESH_FIRST_SECONDS
        self._first_fresh = 0  # attempts from this number on show what is new
        self._is_fresh = False  # the one that was welcomed last

    @property
    def due(self) -> float:
        """When ``poll`` has something to do, if nothing else happens. After ``poll`` never in the past."""
        next_at = self._next_at if self._in_trouble and not self._awaits_one else math.inf
        return next_at if self._under_way else min(next_at, self._refresh_at)

    def refresh(self) -> None:
        """From now on a carrier is wanted that is newer than this moment; the next ``poll`` sees to it."""
        self._refresh_at, self._refresh_window = -math.inf, _REFRESH_FIRST_SECONDS
        self._first_fresh = self._last_number + 1

    @property
    def is_trying(self) -> bool:
        """Whether any attempt is under way."""
        return bool(self._under_way)

    def route_changed(self) -> None:
        """The way to the server is another one now; the next ``poll`` sees to it."""
        self._route_changed = True

    @property
    def refreshes(self) -> bool:
        """Whether the attempt that was welcomed last is for a carrier that had no fault but its age."""
        return self._is_fresh

    def poll(self, now: float, carried: CarrierStatus, chance: float) -> list[Action]:
        """What is to be done now. ``chance`` is a random number from 0 to 1."""
        changed, self._route_changed = self._route_changed and now >= self._route_at + _ROUTE_SECONDS, False
        if changed:
            self._route_at = now
            # What is not connected yet tries the old route.
            return [*self._abandon(self._waiting), *self._start(now, carried, chance)]
        if now >= self._refresh_at and not self._under_way:
            self._refresh_at = now + self._refresh_window * (1 + chance)
            self._refresh_window = min(_REFRESH_LAST_SECONDS, 2 * self._refresh_window)
            if not carried.lost:  # else trouble starts one anyway
                return self._start(now, carried, chance)
        if not carried.lost and not carried.quiet:
            beside = carried.late_since < math.inf
            return self._try_beside(now, carried, chance) if beside else self._calm_down(now)
        self._note_trouble(now, carried)
        self._awaits_one = bool(self._under_way) and not self._is_young(now)
        if now < self._next_at or self._awaits_one:
            return []
        return self._start(now, carried, chance)

    def _try_beside(self, now: float, carried: CarrierStatus, chance: float) -> list[Action]:
        """Something is late, though other things are heard."""
        self._note_trouble(now, carried)
        self._awaits_one = True
        if self._under_way or now < max(self._beside_at, self._moved_at + _DROWNING_SECONDS):
            return []
        self._beside_at = now + _DROWNING_SECONDS
        return self._start(now, carried, chance)

    def _note_trouble(self, now: float, carried: CarrierStatus) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            if self._began_at is None or now >= self._calm_since + CALM_SECONDS:
                self._began_at, self._window = now, _FIRST_WINDOW_SECONDS
                self._next_at = max(now, self._started_at + self._stride)
        if carried.lost and not self._was_lost and self._is_young(now):
            # At once, as nothing is left that could come back by itself; but not in a tight loop.
            self._next_at = min(self._next_at, max(now, self._started_at + self._stride))
        self._was_lost = carried.lost

    def _calm_down(self, now: float) -> list[Action]:
        self._was_lost = False
        if not self._in_trouble:
            return []
        self._in_trouble, self._calm_since = False, now
        return self._abandon_all()

    def _is_young(self, now: float) -> bool:
        return self._began_at is None or now < self._began_at + QUICK_SECONDS

    def _start(self, now: float, carried: CarrierStatus, chance: float) -> list[Action]:
        self._schedule(now, carried, chance)
        replaced = self._abandon(self._waiting[-1:]) if len(self._under_way) >= _AT_ONCE else []
        if len(self._under_way) >= _AT_ONCE:
            return []
        self._last_number += 1
        self._under_way[self._last_number] = _UnderWay(now)
        self._started_at = now
        return [*replaced, Start(self._last_number, self._patience)]

    @property
    def _waiting(self) -> list[int]:
        """Those that are not connected, oldest first."""
        return [number for number, one in self._under_way.items() if not one.connected]

    def _schedule(self, now: float, carried: CarrierStatus, chance: float) -> None:
        """Sets when the next one is due."""
        if self._is_young(now):
            stretched = min(carried.answer_seconds, self._patience / _AT_ONCE)
            self._next_at = now + max(self._stride, stretched) * (1 + chance)
            return
        self._next_at = now + self._window * chance
        self._window = min(self._max_wait, 2 * self._window)

    def failed(self, number: int) -> None:
        """An attempt came to nothing."""
        self._under_way.pop(number, None)
        if self._bound == number:
            self._bound = None

    def connected(self, number: int, carried: CarrierStatus) -> bool:
        """An attempt reached the server: whether it is bound, and its hello says so."""
        one = self._under_way.get(number)
        if one is None:
            return False
        one.connected = True
        if self._bound is not None or not carried.lost:
            return False
        self._bound = number
        return True

    def welcomed(self, number: int, carried: CarrierStatus) -> bool:
        """Whether this attempt is to be used. If so all others are to be abandoned, and if not it is."""
        one = self._under_way.pop(number, None)
        if one is None:
            return False
        self._is_fresh = self._refresh_at < math.inf and number >= self._first_fresh
        return number == self._bound or self._is_fresh or self._is_better(one, carried)

    def _is_better(self, one: _UnderWay, carried: CarrierStatus) -> bool:
        is_backlogged = carried.late_since < one.began and one.began > self._moved_at + _DROWNING_SECONDS
        return carried.lost or carried.last_received_at < one.began or is_backlogged

    def moved(self, now: float) -> list[Action]:
        """The session goes on over a new carrier."""
        self._in_trouble, self._was_lost = False, False
        self._began_at, self._moved_at = None, now
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
