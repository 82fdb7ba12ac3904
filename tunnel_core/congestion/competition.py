"""Whether the queue on the way to the peer is somebody else's. No I/O, no clock.

1. What lean packets still wait for is not ours. If it stays well above the shortest way there that was
   ever seen, another flow fills the queue, as TCP's loss-based ones do (cubic, reno): then holding our
   queue short only makes it longer for them, and a limit by delay alone ends with nothing. Copa's
   detection (Arun and Balakrishnan, NSDI 2018: does the queue ever empty?), with dips to look.
2. Beside us, who hold our queue short, theirs may stay short as well while they take what we leave: when our
   rate fell, less of a queue counts. The rate alone would count each link that got slow.
3. A longer route looks the same, but stands still, while a queue that TCP fills and drains does not:
   what has not moved for longer than one of cubic's cycles on such a link becomes the new shortest.
4. The clocks of two machines drift: the shortest rises by as much as they may.

A rival that was there before us is seen when its queue first gets shorter; until then TCP's own
fairness to newcomers, which is poor as well, is all there is.
"""

from __future__ import annotations

import math

_INFLATED_SECONDS = 0.020
"""Above what another session that bounds its flight, or a busy program, leaves in the way of a dip."""
_INFLATED_SHARE = 0.1
"""The same for long round trips, where every queue is longer."""
_FELL_SHARE = 0.4
"""Of these, when our rate fell."""
_FELL_BELOW, _FORGET_BEST = 0.7, 0.01
"""Of the best rate, of which so much is forgotten in a second."""
_MEMORY_SECONDS = 14.0
"""Two dips long: the queue that TCP fills empties now and then, and its flow is still there."""
_STILL_SECONDS = 15.0
"""Cubic's cycle is 5 to 10 s where a queue holds up to half a second of 20 Mbit/s."""
_STILL_BAND = 0.005
_STILL_SHARE = 0.05
_DRIFT = 5e-4
"""NTP slews a clock by up to 500 ppm."""


class CompetingFlowDetector:
    """Fed with the unloaded way there; tells whether to compete."""

    __slots__ = ("_band", "_best_rate", "_now", "_shortest", "_still_since", "_until", "present")

    def __init__(self, now: float) -> None:
        self._now = self._still_since = now
        self._shortest = math.inf
        self._best_rate = 0.0
        self._band = (math.inf, -math.inf)
        self._until = -math.inf
        self.present = False

    def look(self, min_one_way_delay: float, base_round_trip: float, rate: float, now: float) -> None:
        """``min_one_way_delay``: as lean packets find it. ``base_round_trip``: the shortest.

        ``rate`` is ours, in bytes per second.
        """
        passed, self._now = now - self._now, now
        self._shortest = min(self._shortest + _DRIFT * passed, min_one_way_delay)
        self._best_rate = max(self._best_rate * math.exp(-_FORGET_BEST * passed), rate)
        inflation = min_one_way_delay - self._shortest
        most = max(_INFLATED_SECONDS, _INFLATED_SHARE * base_round_trip)
        if rate < _FELL_BELOW * self._best_rate:
            most *= _FELL_SHARE
        if inflation <= most:
            self._stir(min_one_way_delay)
        else:
            self._until = now + _MEMORY_SECONDS
            self._watch(min_one_way_delay, _STILL_BAND + _STILL_SHARE * inflation)
        self.present = now < self._until

    def _stir(self, min_one_way_delay: float) -> None:
        self._band = min_one_way_delay, min_one_way_delay
        self._still_since = self._now

    def _watch(self, min_one_way_delay: float, width: float) -> None:
        low, high = min(self._band[0], min_one_way_delay), max(self._band[1], min_one_way_delay)
        self._band = low, high
        if high - low > width:
            self._stir(min_one_way_delay)
        elif self._now - self._still_since > _STILL_SECONDS:
            self._shortest, self._until = min_one_way_delay, self._now
