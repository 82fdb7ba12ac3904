"""Decide how far beyond the known rate of the link the sender probes. No I/O, no clock.

1. The problem. Bytes beyond the link's rate wait in a queue, and the sender sees that one round trip later.
   On a long path these bytes are more than a short queue holds (eight segments are 50 ms of 2 Mbit/s). A lost
   segment costs every stream a round trip or two, because in one connection nothing overtakes it.
2. A new carrier knows no rate and doubles each round trip, as TCP below it does. Some loss is the price.
3. The probe remembers the rate at which a queue stood. Well below that rate, as after a loss, growth is
   quick, because it ends before the queue begins. Near that rate a round trip of growth fits any queue. Above
   it, where the link must have become faster, the steps double.
4. Growth ends with the first samples that find a queue, not at the end of the round trip (TCP's HyStart). On
   paths that are not paced growth ends when the rate stops growing, because only a program waits there.
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
_MAX_PROBE_SECONDS = 0.030
_GROWTH = 1.25
"""A smaller factor within a round trip counts as no growth (BBR)."""
_KNOWN_SHARE = 0.85
"""Share of the remembered rate up to which growth is quick: a quarter more, seen a round trip late, stays
below that rate."""
_EMPTY_ROUNDS = 4
"""Rounds without a queue before growth near the remembered rate. One round may be the tail of an RTT probe,
and pacing alone creeps upwards."""
_QUEUED_SAMPLES = 2
"""Samples in a row that make a queue, because one is the noise of a program."""


class BandwidthProbe:
    """The probe of one carrier.

    ``slack``: the longest intended queue in seconds; ``rate``: bytes per second.
    """

    __slots__ = (
        "_empty_rounds",
        "_full_rate",
        "_known_rate",
        "_probe_seconds",
        "_queued_samples",
        "active",
        "in_startup",
    )

    def __init__(self) -> None:
        self.active = True
        self.in_startup = True
        """Whether this is the first growth of the carrier, whose rate is not known yet."""
        self._known_rate = math.inf
        self._full_rate = 0.0  # when growth was last seen
        self._probe_seconds = _PROBE_SECONDS
        self._empty_rounds = 0
        self._queued_samples = 0

    def gain(self, rate: float, base_round_trip: float) -> float:
        """Return the share by which the sender may exceed ``rate``.

        ``base_round_trip`` is in seconds; it may be 0, because a peer may send any arrival stamp.
        """
        if not self.active:
            return 0.0
        if self.in_startup:
            return _STARTUP_GAIN
        if base_round_trip <= 0 or self._is_well_below(rate):
            return _PROBE_GAIN
        return min(_PROBE_GAIN, self._probe_seconds / base_round_trip)

    def _is_well_below(self, rate: float) -> bool:
        return rate < _KNOWN_SHARE * self._known_rate < math.inf

    def observe_queue(self, queue: float, slack: float, rate: float, *, trusted: bool) -> None:
        """Record that a sample on a paced path waited ``queue`` seconds.

        ``trusted``: ``rate`` was not measured during an RTT probe or an unintended queue.
        """
        self._queued_samples = self._queued_samples + 1 if queue > slack / 2 else 0
        if self._queued_samples < _QUEUED_SAMPLES:
            return
        if self.active:
            self._stop(rate)
        elif trusted:
            self._known_rate = max(self._known_rate, rate)

    def end_round(self, queue: float, slack: float, rate: float) -> None:
        """End a round trip of undisturbed bulk, whose packets waited ``queue`` seconds on average."""
        if not self.active:
            self._empty_rounds = self._empty_rounds + 1 if queue < slack / 4 else 0
            if self._empty_rounds >= (1 if self._is_well_below(rate) else _EMPTY_ROUNDS):
                self.active, self._full_rate = True, rate
            return
        if rate > _GROWTH * self._known_rate:
            self._probe_seconds = min(_MAX_PROBE_SECONDS, 2 * self._probe_seconds)
        if rate >= _GROWTH * self._full_rate:
            self._full_rate = rate
        elif queue > slack / 2:
            self._stop(rate)

    def _stop(self, rate: float) -> None:
        self.active = self.in_startup = False
        self._known_rate = rate
        self._probe_seconds = _PROBE_SECONDS
        self._empty_rounds = 0

    def interrupt(self) -> None:
        """Discard the rounds without a queue, because an RTT probe begins and empties the queue itself."""
        self._empty_rounds = 0
