"""Detect whether another flow fills the queue on the path to the peer. No I/O, no clock.

1. Packets sent with few bytes in flight find no queue of ours. If their delay stays well above the smallest
   delay ever seen, another flow fills the queue, as loss-based TCP does (cubic, reno). A short queue of ours
   then only lengthens theirs, and a limit by delay alone starves us. This is Copa's test (Arun and
   Balakrishnan, NSDI 2018: does the queue ever empty?), made during the controller's RTT probes.
2. Because we keep our queue short, a competing flow may keep a short queue too, and take the rate that we
   leave. So a smaller delay counts when our rate has fallen. The rate alone would count each link that slows
   down.
3. A longer route looks the same, but its delay stays constant, while a queue that TCP fills and drains does
   not. A delay that stays constant for longer than one of cubic's cycles becomes the new smallest delay.
4. The clocks of two machines drift, so the smallest delay rises by the largest drift allowed for.

A competing flow that was there first is detected when its queue first gets shorter. Until then only TCP's own
fairness to newcomers applies, which is poor as well.
"""

from __future__ import annotations

import math

_INFLATED_SECONDS = 0.020
"""More than another session with this limit, or a busy program, adds to the delay during an RTT probe."""
_INFLATED_SHARE = 0.1
"""The same bound as a share of the round trip, because every queue on a long path is longer."""
_RATE_FELL_SHARE = 0.4
"""Share of these bounds that counts when our rate fell."""
_RATE_FELL_BELOW, _BEST_RATE_DECAY = 0.7, 0.01
"""The rate fell if it is below this share of the best rate, which decays by the second figure each second."""
_MEMORY_SECONDS = 14.0
"""Two RTT probes, because TCP's queue empties now and then while its flow goes on."""
_CONSTANT_SECONDS = 15.0
"""Cubic's cycle is 5 to 10 s where a queue holds up to half a second of 20 Mbit/s."""
_CONSTANT_BAND = 0.005
_CONSTANT_SHARE = 0.05
_DRIFT = 5e-4
"""NTP slews a clock by up to 500 ppm."""


class CompetingFlowDetector:
    """Decides from the smallest one-way delay of each round whether to compete with another flow."""

    __slots__ = (
        "_best_rate",
        "_constant_since",
        "_delay_range",
        "_detected_until",
        "_min_delay",
        "_now",
        "detected",
    )

    def __init__(self, now: float) -> None:
        self._now = self._constant_since = now
        self._min_delay = math.inf
        self._best_rate = 0.0
        self._delay_range = (math.inf, -math.inf)
        self._detected_until = -math.inf
        self.detected = False

    def update(self, min_one_way_delay: float, base_round_trip: float, rate: float, now: float) -> None:
        """Judge one round; ``detected`` has the result. Times in seconds.

        ``min_one_way_delay`` is the delay of packets that found no queue of ours. ``base_round_trip`` is the
        smallest round trip. ``rate`` is our own, in bytes per second.
        """
        elapsed, self._now = now - self._now, now
        self._min_delay = min(self._min_delay + _DRIFT * elapsed, min_one_way_delay)
        self._best_rate = max(self._best_rate * math.exp(-_BEST_RATE_DECAY * elapsed), rate)
        inflation = min_one_way_delay - self._min_delay
        threshold = max(_INFLATED_SECONDS, _INFLATED_SHARE * base_round_trip)
        if rate < _RATE_FELL_BELOW * self._best_rate:
            threshold *= _RATE_FELL_SHARE
        if inflation <= threshold:
            self._restart_constant(min_one_way_delay)
        else:
            self._detected_until = now + _MEMORY_SECONDS
            self._adopt_if_constant(min_one_way_delay, _CONSTANT_BAND + _CONSTANT_SHARE * inflation)
        self.detected = now < self._detected_until

    def _restart_constant(self, min_one_way_delay: float) -> None:
        self._delay_range = min_one_way_delay, min_one_way_delay
        self._constant_since = self._now

    def _adopt_if_constant(self, min_one_way_delay: float, width: float) -> None:
        """Take a delay that stayed within ``width`` seconds for long as that of a longer route."""
        low, high = min(self._delay_range[0], min_one_way_delay), max(self._delay_range[1], min_one_way_delay)
        self._delay_range = low, high
        if high - low > width:
            self._restart_constant(min_one_way_delay)
        elif self._now - self._constant_since > _CONSTANT_SECONDS:
            self._min_delay, self._detected_until = min_one_way_delay, self._now
