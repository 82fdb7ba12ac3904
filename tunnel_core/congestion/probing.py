"""How much more than the link is known to carry is tried. No I/O, no clock.

1. The problem. What is sent beyond the link's rate is seen one round trip later, and waits until then. On a
   long path that is more than a short queue holds (eight segments are 50 ms of 2 Mbit/s), and a lost
   segment costs every stream a round trip or two: in one connection nothing overtakes it.
2. A new carrier knows nothing and doubles each round trip, as TCP below it does. Some loss is the price.
3. The rate at which a queue stood is remembered. Well below it, as after a loss, growth is quick, because
   it ends before the queue begins; near it growth is so slow that a round trip of it fits any queue; above
   it, where the link must have got faster, the steps double.
4. Growth ends with the first samples that find a queue, and not with the round trip: TCP's HyStart. On
   paths that are not paced it ends when the rate grows no more, because what waits there is a program.
"""

from __future__ import annotations

import math

_STARTUP_GAIN = 1.0
"""Growth in a round trip on a new carrier, as a part of the rate: it doubles. Too much is seen a round trip
later."""
_PROBE_GAIN = 0.25
"""Growth in a round trip well below the rate that is known, as a part of the rate."""
_PROBE_SECONDS = 0.010
"""Time that the bytes of a gentle step of growth may wait. With 20 ms a queue of 50 ms lost one segment in
each growth."""
_MOST_PROBE_SECONDS = 0.030
_GROWTH = 1.25
"""Less in a round trip is no growth any more (BBR)."""
_KNOWN_SHARE = 0.85
"""Of the remembered rate: a quarter more, seen a round trip late, does not pass it."""
_EMPTY_ROUNDS = 4
"""Near the remembered rate. One may be the tail of a dip, and pacing alone creeps upwards."""
_STANDING_SAMPLES = 2
"""One is the noise of a program."""


class BandwidthProbe:
    """Of one carrier. ``slack``: seconds of queue that are intended at most; ``rate`` in bytes per second."""

    __slots__ = ("_empty_rounds", "_full_rate", "_known_rate", "_probe_seconds", "_standing", "new", "on")

    def __init__(self) -> None:
        self.on = True
        self.new = True
        """The first growth of a carrier, of which nothing is known."""
        self._known_rate = math.inf
        self._full_rate = 0.0  # when growth was last seen
        self._probe_seconds = _PROBE_SECONDS
        self._empty_rounds = 0
        self._standing = 0

    def gain(self, rate: float, base_round_trip: float) -> float:
        """By what share the rate may be passed. ``base_round_trip`` may be 0: a peer may tell any arrival."""
        if not self.on:
            return 0.0
        if self.new:
            return _STARTUP_GAIN
        if base_round_trip <= 0 or self._is_low(rate):
            return _PROBE_GAIN
        return min(_PROBE_GAIN, self._probe_seconds / base_round_trip)

    def _is_low(self, rate: float) -> bool:
        return rate < _KNOWN_SHARE * self._known_rate < math.inf

    def found_queue(self, queue: float, slack: float, rate: float, *, trusted: bool) -> None:
        """A sample on a paced path waited so long. ``trusted``: the rate is not that of a disturbance."""
        self._standing = self._standing + 1 if queue > slack / 2 else 0
        if self._standing < _STANDING_SAMPLES:
            return
        if self.on:
            self._stop(rate)
        elif trusted:
            self._known_rate = max(self._known_rate, rate)

    def end_round(self, queue: float, slack: float, rate: float) -> None:
        """A round trip of undisturbed bulk is over; on average it waited so long."""
        if not self.on:
            self._empty_rounds = self._empty_rounds + 1 if queue < slack / 4 else 0
            if self._empty_rounds >= (1 if self._is_low(rate) else _EMPTY_ROUNDS):
                self.on, self._full_rate = True, rate
            return
        if rate > _GROWTH * self._known_rate:
            self._probe_seconds = min(_MOST_PROBE_SECONDS, 2 * self._probe_seconds)
        if rate >= _GROWTH * self._full_rate:
            self._full_rate = rate
        elif queue > slack / 2:
            self._stop(rate)

    def _stop(self, rate: float) -> None:
        self.on = self.new = False
        self._known_rate = rate
        self._probe_seconds = _PROBE_SECONDS
        self._empty_rounds = 0

    def disturbed(self) -> None:
        """The flight dips: what is seen meanwhile tells nothing of an empty queue."""
        self._empty_rounds = 0
