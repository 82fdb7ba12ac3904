"""Measure the pauses of the programs at both ends, whose processors may be busy. No I/O, no clock.

1. The problem. A program that runs for 5 of 100 ms neither sends nor acknowledges in the other 95. A limit of
   one round trip then leaves the link idle. The rate that is measured falls, so the limit falls too, down to
   its minimum. Without a correction a sender at half a processor had 8 % of 20 Mbit/s.
2. Pauses of this end: the time between the pacer's deadline and the program's next request for room. The time
   in which a write of the carrier is blocked counts too.
3. Pauses of the peer: it stamps packets when its program reads them. After a pause it reads many at once, so
   the stamps lie closer together than the times of sending. A queue of the link never does that.
4. A lost segment also holds back the packets behind it. So pauses of the peer count only if they are regular,
   and a longer one than a processor's is none. Beside a competing flow losses are regular, so none counts.
"""

from __future__ import annotations

from collections import deque

_ROUNDS = 8
"""Round trips that are remembered: about half a second where the round trip is 50 ms."""
_LOCAL_RANK, _PEER_RANK = 2, 3
"""The second longest pause of this end counts, and the third longest of the peer: a loss makes two."""
_MIN_LOCAL_SECONDS, _MIN_PEER_SECONDS = 0.005, 0.020
"""Shorter pauses are noise: of a timer, and of TCP, which sends in small bursts."""
_MAX_SECONDS = 0.2
"""Two periods of the kernel's quota. Bounds the queue, and tells a pause from a loss on a long path."""


class StallEstimator:
    """Estimates the regular pauses of both ends from the round trips of one carrier, in seconds."""

    __slots__ = ("_burst", "_local_rounds", "_peer_rounds", "_quiet_rounds", "_round_local", "_round_peer")

    def __init__(self) -> None:
        self._local_rounds = deque([0.0] * _ROUNDS, maxlen=_ROUNDS)
        self._peer_rounds = deque([0.0] * _ROUNDS, maxlen=_ROUNDS)
        self._round_local = self._round_peer = 0.0
        self._burst = 0.0
        self._quiet_rounds = _ROUNDS

    def observe_late(self, seconds: float) -> None:
        """Record that this end sent so much later than the pace allowed."""
        self._round_local = max(self._round_local, min(seconds, _MAX_SECONDS))

    def observe_compression(self, seconds: float) -> None:
        """Record by how much a packet's distance to its predecessor shrank on its way; 0: it did not."""
        self._burst = self._burst + seconds if seconds else 0.0
        if self._burst <= _MAX_SECONDS:
            self._round_peer = max(self._round_peer, self._burst)

    def end_round(self, *, competing: bool) -> float:
        """End a round trip. Return the regular pauses of both ends; only of this one if ``competing``."""
        if self._round_local or self._round_peer:
            self._quiet_rounds = 0
        elif self._quiet_rounds >= _ROUNDS:
            return 0.0  # spares the fast paths
        else:
            self._quiet_rounds += 1
        self._local_rounds.append(self._round_local)
        self._peer_rounds.append(self._round_peer)
        self._round_local = self._round_peer = 0.0
        local = _ranked(self._local_rounds, _LOCAL_RANK, _MIN_LOCAL_SECONDS)
        return local + (0.0 if competing else _ranked(self._peer_rounds, _PEER_RANK, _MIN_PEER_SECONDS))


def _ranked(rounds: deque[float], rank: int, minimum: float) -> float:
    seconds = sorted(rounds)[-rank]
    return seconds if seconds > minimum else 0.0
