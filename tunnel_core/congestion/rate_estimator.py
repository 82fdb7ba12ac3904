"""Measure the path to the peer from acknowledgements: its rate, its delay, its queue. No I/O, no clock.

1. Each acknowledgement carries the peer's clock at the arrival of the packet (``acks.py``). So forward delay
   and return delay are measured apart, each up to one constant, the difference of the clocks. The constant
   cancels in every sum and difference used here. Without a stamp the whole round trip counts as forward
   delay, which is as good as any limit that knows round trips only.
2. Forward delay, less the smallest forward delay, is the queue ahead of a packet: gRPC, socket, modem. The
   smallest comes from packets sent with few bytes in flight, which find no queue of ours, and from any
   smaller delay. It expires after a few seconds, because routes and competing flows change.
3. Return delay is averaged with all its queues, because a window must cover it and no queue there is ours.
4. The delivery rate is BBR's (draft-cardwell-iccrg-bbr-congestion-control). It is the bytes that arrived
   since a packet left, over the longer of the times in which they were sent and arrived. The peer's clock
   makes the rate immune to acknowledgements that come in bursts.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from tunnel_core.congestion.acks import STAMP_MODULUS

_HALF = STAMP_MODULUS // 2
_RETURN_GAIN = 1 / 8
"""TCP's gain for its smoothed round trip (RFC 6298)."""
_FORWARD_MIN_SECONDS = 5.0
"""How long the smallest forward delay holds: two of the RTT probes that ``controller.py`` makes to renew
it."""
_RETURN_MIN_SECONDS = 10.0
"""How long the smallest return delay holds: BBR's window for the smallest round trip."""
_MIN_INTERVAL = 1e-4
"""A rate over a shorter interval is the noise of the clock: a packet costs a program as much."""


class _SentPacket(NamedTuple):
    """A packet in flight, and what was known when it left."""

    number: int
    size: int
    sent_at: float
    delivered: int
    last_sent: float  # when the newest packet that was acknowledged by then had left
    last_arrived: float
    app_limited: bool
    low_inflight: bool


class Sample(NamedTuple):
    """The measurement of one acknowledgement."""

    number: int
    size: int  # bytes that it acknowledges
    rate: float  # bytes per second
    queue: float  # seconds for which the newest of them waited on the forward path
    app_limited: bool  # the program had no more to send, so the link may do better
    compression: float  # seconds by which its distance to the sample before shrank; 0: to no less than half


class RateEstimator:
    """Estimates from the acknowledgements of one carrier, in bytes and seconds."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.min_one_way_delay = math.inf
        """The forward delay without a queue of ours, plus the difference of the clocks."""
        self.base_round_trip = 0.0
        """The present round trip without a queue of ours on the forward path; 0: not known yet."""
        self._return_delay = 0.0  # less the difference of the clocks, as every arrival time here
        self._round_trip = 0.0
        self._packets: deque[_SentPacket] = deque()
        self._delivered = 0
        self._reference: int | None = None
        self._last_sent = self._last_arrived = 0.0
        self._forward_delays: deque[tuple[float, float]] = deque()  # rising, the smallest first
        self._return_delays: deque[tuple[float, float]] = deque()

    @property
    def min_round_trip(self) -> float:
        """``base_round_trip`` without any queue on the return path either."""
        if not self._return_delays:
            return 0.0
        return min(self._round_trip, max(0.0, self.min_one_way_delay + self._return_delays[0][1]))

    def sent(self, number: int, size: int, now: float, *, app_limited: bool, low_inflight: bool) -> None:
        """Record a packet that leaves. ``low_inflight``: it finds no queue of ours."""
        if not self.in_flight:
            self._last_sent, self._last_arrived = now, now - self._return_delay
        self.in_flight += size
        before = self._delivered, self._last_sent, self._last_arrived
        self._packets.append(_SentPacket(number, size, now, *before, app_limited, low_inflight))

    def acked(self, number: int, stamp: int, now: float) -> Sample | None:
        """Record that all packets up to ``number`` arrived.

        Return None if none of them was in flight here.
        """
        packet, size = None, 0
        while self._packets and self._packets[0].number <= number:
            packet = self._packets.popleft()
            size += packet.size
        if packet is None:
            return None
        self.in_flight -= size
        self._delivered += size
        forward_delay = self._forward_delay(packet, stamp, now)
        self._update_delays(packet, forward_delay, now)
        rate = self._rate(packet, forward_delay, now)
        arrived = packet.sent_at + forward_delay
        sent_gap, arrival_gap = packet.sent_at - self._last_sent, arrived - self._last_arrived
        compression = sent_gap - arrival_gap if arrival_gap < sent_gap / 2 else 0.0
        self._last_sent, self._last_arrived = packet.sent_at, arrived
        queue = max(0.0, forward_delay - self.min_one_way_delay)
        return Sample(packet.number, size, rate, queue, packet.app_limited, compression)

    def _forward_delay(self, packet: _SentPacket, stamp: int, now: float) -> float:
        if not stamp:
            return now - packet.sent_at
        raw = stamp - int(packet.sent_at * 1e6)
        if self._reference is None:
            self._reference = raw
        return ((raw - self._reference + _HALF) % STAMP_MODULUS - _HALF) / 1e6

    def _update_delays(self, packet: _SentPacket, forward_delay: float, now: float) -> None:
        self._round_trip = now - packet.sent_at
        sample = self._round_trip - forward_delay
        first = not self._return_delays
        self._return_delay = (
            sample if first else self._return_delay + _RETURN_GAIN * (sample - self._return_delay)
        )
        _keep_minimum(self._return_delays, sample, now, _RETURN_MIN_SECONDS)
        if packet.low_inflight or forward_delay < self.min_one_way_delay:
            _keep_minimum(self._forward_delays, forward_delay, now, _FORWARD_MIN_SECONDS)
            self.min_one_way_delay = self._forward_delays[0][1]
        self.base_round_trip = min(self._round_trip, max(0.0, self.min_one_way_delay + self._return_delay))

    def _rate(self, packet: _SentPacket, forward_delay: float, now: float) -> float:
        if packet.delivered:
            arriving = packet.sent_at + forward_delay - packet.last_arrived
        else:
            arriving = now - packet.last_sent  # no packet had arrived yet to count from
        interval = max(arriving, packet.sent_at - packet.last_sent, _MIN_INTERVAL)
        return (self._delivered - packet.delivered) / interval

    def forget_min_delay(self) -> None:
        """Let the next packet with few bytes in flight alone set the smallest forward delay."""
        self._forward_delays.clear()


def _keep_minimum(window: deque[tuple[float, float]], value: float, now: float, seconds: float) -> None:
    """Add ``value`` to a running minimum: drop older entries that are not smaller, and expired ones."""
    while window and window[-1][1] >= value:
        window.pop()
    window.append((now, value))
    while window[0][0] < now - seconds:
        window.popleft()
