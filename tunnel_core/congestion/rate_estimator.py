"""What confirmations tell about the way to the peer: its rate, its delay, what waits on it. No I/O, no clock.

1. Each confirmation carries the peer's clock when the packet arrived (``acks.py``). So the way there
   and the way back are measured apart, each up to one constant, the difference of the clocks, which
   cancels in every sum and difference used here. Without a stamp the whole round trip counts as way
   there: as good as any limit that knows round trips only.
2. Way there, less the shortest way there, is what waits in front of us: gRPC, socket, modem. The shortest
   is taken from *lean* packets (sent with so little in flight that they found none of ours waiting),
   and from whatever is shorter still. It is forgotten after a few seconds: routes and rivals change.
3. Way back is averaged, with all that it holds: a window must cover it, and nothing of ours waits there.
4. Delivery rate as in BBR (draft-cardwell-iccrg-bbr-congestion-control, delivery rate estimation): bytes
   that arrived since a packet left, over the longer of the times in which they were sent and arrived.
   The peer's clock makes it immune to confirmations that come in bursts.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from tunnel_core.congestion.acks import STAMP_MODULUS

_HALF = STAMP_MODULUS // 2
_BACK_GAIN = 1 / 8
"""TCP's gain for its smoothed round trip (RFC 6298)."""
_LEAN_SECONDS = 5.0
"""How long a lean packet's delay is believed: two of the dips that ``controller.py`` makes for new ones."""
_BACK_SECONDS = 10.0
"""How long the shortest way back is believed: BBR's window for the smallest round trip."""
_SHORTEST_INTERVAL = 1e-4
"""Below it a rate is the noise of the clock: a packet costs a program as much."""


class _Sent(NamedTuple):
    """A packet under way, and what was known when it left."""

    number: int
    size: int
    sent_at: float
    delivered: int
    last_sent: float  # when the newest packet that was confirmed by then had left
    last_arrived: float
    app_limited: bool
    low_inflight: bool


class Sample(NamedTuple):
    """What one confirmation told."""

    number: int
    size: int  # bytes that it confirmed
    rate: float
    queue: float  # seconds for which the newest of them waited on the way there
    app_limited: bool  # the program had no more to send, so the link may do better


class RateEstimator:
    """Estimates from the confirmations of one carrier. Everything in bytes and seconds."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.min_one_way_delay = math.inf
        """The way there with nothing of ours on it, plus the clocks' difference."""
        self.base_round_trip = 0.0
        """The round trip of now with nothing of ours waiting on the way there; 0: not known yet."""
        self._back = 0.0  # less the clocks' difference, as every time of arrival
        self._trip = 0.0
        self._under_way: deque[_Sent] = deque()
        self._delivered = 0
        self._reference: int | None = None
        self._last_sent = self._last_arrived = 0.0
        self._leans: deque[tuple[float, float]] = deque()  # rising, the least first
        self._backs: deque[tuple[float, float]] = deque()

    @property
    def shortest(self) -> float:
        """The same with nothing waiting on the way back either."""
        return min(self._trip, max(0.0, self.min_one_way_delay + self._backs[0][1])) if self._backs else 0.0

    def sent(self, number: int, size: int, now: float, *, app_limited: bool, low_inflight: bool) -> None:
        if not self.in_flight:
            self._last_sent, self._last_arrived = now, now - self._back
        self.in_flight += size
        before = self._delivered, self._last_sent, self._last_arrived
        self._under_way.append(_Sent(number, size, now, *before, app_limited, low_inflight))

    def acked(self, number: int, stamp: int, now: float) -> Sample | None:
        """None if it confirms nothing that is under way on this carrier."""
        packet, size = None, 0
        while self._under_way and self._under_way[0].number <= number:
            packet = self._under_way.popleft()
            size += packet.size
        if packet is None:
            return None
        self.in_flight -= size
        self._delivered += size
        there = self._way_there(packet, stamp, now)
        self._measure(packet, there, now)
        rate = self._rate(packet, there, now)
        self._last_sent, self._last_arrived = packet.sent_at, packet.sent_at + there
        return Sample(packet.number, size, rate, max(0.0, there - self.min_one_way_delay), packet.app_limited)

    def _way_there(self, packet: _Sent, stamp: int, now: float) -> float:
        if not stamp:
            return now - packet.sent_at
        raw = stamp - int(packet.sent_at * 1e6)
        if self._reference is None:
            self._reference = raw
        return ((raw - self._reference + _HALF) % STAMP_MODULUS - _HALF) / 1e6

    def _measure(self, packet: _Sent, there: float, now: float) -> None:
        self._trip = now - packet.sent_at
        back = self._trip - there
        self._back = back if not self._backs else self._back + _BACK_GAIN * (back - self._back)
        _keep_least(self._backs, back, now, _BACK_SECONDS)
        if packet.low_inflight or there < self.min_one_way_delay:
            _keep_least(self._leans, there, now, _LEAN_SECONDS)
            self.min_one_way_delay = self._leans[0][1]
        self.base_round_trip = min(self._trip, max(0.0, self.min_one_way_delay + self._back))

    def _rate(self, packet: _Sent, there: float, now: float) -> float:
        if packet.delivered:
            arriving = packet.sent_at + there - packet.last_arrived
        else:
            arriving = now - packet.last_sent  # nothing had arrived yet to count from
        interval = max(arriving, packet.sent_at - packet.last_sent, _SHORTEST_INTERVAL)
        return (self._delivered - packet.delivered) / interval

    def forget_unloaded(self) -> None:
        """The next lean packet tells alone what the way there takes."""
        self._leans.clear()


def _keep_least(window: deque[tuple[float, float]], value: float, now: float, seconds: float) -> None:
    """A running minimum: what is older and not less can never be it again."""
    while window and window[-1][1] >= value:
        window.pop()
    window.append((now, value))
    while window[0][0] < now - seconds:
        window.popleft()
