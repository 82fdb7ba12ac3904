"""Bound the bytes that a session has in flight on its carrier. No I/O, no clock.

1. The problem. gRPC, the socket and the modem have buffers of megabytes. Nothing overtakes the bytes in them,
   so a keystroke waits behind bulk: 2.4 s on 20 Mbit/s. So the session hands over no more than the link
   carries in a round trip, plus a small queue, so that the link is never idle.
2. Limit = rate x (base round trip + slack) + the bytes between two acknowledgements. ``rate_estimator.py``
   measures the rate and the base round trip: the present round trip without the queue on the forward path.
   It follows changes of route, and other bulk on the return path does not starve this sender.
3. The rate is the maximum over some round trips, because samples fall short when this end sends less. While
   an unintended queue stands, the link carries all it can. Then the newest round trip sets the rate by its
   best sample, because bytes behind a lost segment arrive late and all at once. A sample whose packet left
   when the program had no more to send never lowers the rate.
4. A new carrier starts small and grows until a queue begins to stand; later it grows while no queue stands
   (``probing.py``). The limit grows by at most the bytes acknowledged, so growth makes no burst.
5. Every few seconds, or when an unintended queue stands, an *RTT probe* lowers the limit below what the base
   round trip holds. Packets sent then find no queue of ours, so they measure the path itself (BBR's
   PROBE_RTT, shallower). The queue that drains was ours; the queue that stays is not.
6. Beside a competing flow (``competition.py``) the limit is a multiple of the path's bytes and holds that
   flow's queue. TCP below then has more than it can use, and competes as for everybody.
7. Bulk is paced on long paths (``pacer.py``), at the rate and a little more or less, so that half the slack
   waits. Behind bulk of the other direction acknowledgements come in bursts (Zhang, Shenker and Clark 1991),
   and a limit alone turns them into bursts both ways. Pacing is the only use of a timer.
   Priority bytes may be a little ahead of limit and pace.
8. With nothing in flight one packet may always leave, so no acknowledgement or stamp of a peer stops the
   session. While only keystrokes are in flight on a short path, few packets are counted, for speed.
9. Programs on a busy processor pause (``stalls.py``). The slack grows by their pauses, and so do packets.
10. The receiver rarely acknowledges on its own (``acks.py``); ``sent`` returns when to request it.

Other modules decide whose bytes leave (the mux) and what is acknowledged (the session). Nothing decides
fairness among the sessions of one link, each of which holds a few milliseconds. Packets of an older carrier
are no samples. BBR: draft-cardwell-iccrg-bbr-congestion-control. docs/congestion.md lists rejected designs.
"""

from __future__ import annotations

from collections import deque

from tunnel_core.congestion.competition import CompetingFlowDetector
from tunnel_core.congestion.pacer import PACED_PATH_SECONDS, Pacer
from tunnel_core.congestion.probing import BandwidthProbe
from tunnel_core.congestion.rate_estimator import RateEstimator, Sample
from tunnel_core.congestion.stalls import StallEstimator
from tunnel_core.limits import KIB, MIB, Limits

_INITIAL_LIMIT = 8 * KIB
"""Less than TCP's own first window (RFC 6928), because it leaves as a burst that a queue of eight segments
must hold. A carrier that loses its first packets is slow for many round trips."""
_MIN_LIMIT = 16 * KIB
"""Twelve of the smallest packets, because fewer make no stream of acknowledgements."""
_MIN_PROBE_RTT_LIMIT = 4 * KIB
_MIN_PACKET, _MIN_SHORT_PATH_PACKET = 1280, 2 * KIB
"""With its headers one segment: TCP counts segments, and part of one takes as much of its window as a whole.
On short paths the price of a packet counts instead."""
_PRIORITY_PACKETS = 2
"""Packets by which priority bytes may exceed limit and pace. Keystrokes stay below; new uploads do not."""
_PACKET_SECONDS = 0.004
"""Link time of a packet, because a keystroke may find one packet ahead of it."""
_FAST_PACKET_SECONDS = 0.01
"""The same on a fast link, where a packet costs the program's time. Smaller packets would cost a busy one
more."""
_STALL_PACKET_SHARE = 1 / 4
"""Share of the programs' pauses that a packet may take, because small ones cost a busy processor too much."""
_ACK_REQUEST_SECONDS = 0.006
"""Between requested acknowledgements: 170 a second at most, 1-2 % of a CPU and of a slow return path."""
_MIN_ACK_REQUEST_BYTES = 4 * KIB
"""16 ms of 2 Mbit/s, where a bare acknowledgement is 3 % of the bytes it acknowledges."""
_INITIAL_ACK_REQUEST_BYTES = 1 * KIB
"""A new carrier requests an acknowledgement with its first packet of bulk, because earlier samples hold the
receiver's delay."""
_UNCOUNTED_BYTES = 2 * KIB
_COUNT_SECONDS = 0.02
"""On short paths, with at most that many bytes in flight, one packet in this time is counted."""
_SLACK_SECONDS = 0.005
"""Time that bytes in flight may wait below this program, because what waits there cannot be overtaken."""
_SLACK_SHARE = 1 / 30
"""Share of the base round trip, because jitter and the error of its estimate grow with it."""
_FAST_SLACK_SECONDS = 0.045
"""More on links without a modem, where the scheduler's stalls are the jitter, and memory is the price."""
_FAST_FROM, _FAST_TO = 100 * MIB, 300 * MIB
"""Rates in bytes a second between which the slack grows from the small one to the large one."""
_COMPETING_GAIN = 1.75
"""Round trips beyond the path. With 0.5, TCP's window was not always full: our share beside cubic was
0.35."""
_PROBE_RTT_SHARE, _COMPETING_PROBE_RTT_SHARE = 0.75, 1.0
"""Share of the path's bytes: deep enough for a rate that is a fifth too high. A deep probe beside a competing
flow would leave the link to that flow."""
_COMPETING_GROWTH = 0.4
"""Share of the bytes acknowledged, because TCP, which has room after an RTT probe, would lose most of a
burst."""
_PROBE_RTT_SECONDS, _COMPETING_PROBE_RTT_SECONDS = 2.5, 6.0
_PROBE_RTT_ROUND_TRIPS = 10
"""An RTT probe costs a quarter of a round trip, so at most 3 %."""
_EARLY_ROUND_TRIPS, _COMPETING_EARLY_ROUND_TRIPS = 4, 12
"""Between probes for unintended queues, because the last one must have shown its effect."""
_RATE_ROUNDS = 10
"""BBR's window, which is longer than an RTT probe."""
_PACE, _COMPETING_PACE = 1.05, 1.25
"""Just above limit / base round trip, where the rate is unknown or does not decide."""
_PACE_QUEUE_SHARE = 1 / 2
"""Share of the slack that pacing lets wait."""
_MIN_PACE = 0.8
"""Share of the rate: a queue drains no faster, or one late packet would stop all bulk."""


class CongestionController:
    """The in-flight limit of one session.

    ``reset`` it for each carrier; packet numbers rise across carriers.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._number = 0
        self.reset(now)

    def reset(self, now: float) -> None:
        """Start anew for a new carrier: forget all measurements and bytes in flight of the old one."""
        self.limit = _INITIAL_LIMIT
        """Bytes that may be in flight."""
        self.rate_bytes_per_second = 0.0
        self._short_path = False
        self._stalls = StallEstimator()
        self._stall_seconds = 0.0  # of regular pauses of the programs: the bytes in flight must last as long
        self.packet_bytes = self._packet_bytes()
        """The most that one packet should hold."""
        self._uncounted: deque[tuple[int, int]] = deque()  # number and size of uncounted packets in flight
        self._uncounted_bytes = 0
        self._count_at = now
        self._estimator = RateEstimator()
        self._competing_flows = CompetingFlowDetector(now)
        self._rates: deque[float] = deque(maxlen=_RATE_ROUNDS)
        self._bandwidth_probe = BandwidthProbe()
        self._queue = 0.0  # seconds, as the newest sample on a paced path measured it
        self._unintended_queue = False  # whether one stood in the last round
        self._app_limited = False
        self._bytes_since_request = 0
        self._pacer = Pacer(now)
        self._low_inflight_at = self._probe_rtt_at = now
        self._probing_rtt = False
        self._probe_rtt_first = 0  # the first packet of the RTT probe that finds no queue of ours
        self._start_round(probed_rtt=False)

    def _start_round(self, *, probed_rtt: bool) -> None:
        self._round_end = self._number + 1
        self._round_rate = self._round_queue = 0.0
        self._round_bytes = 0
        self._round_app_limited, self._round_probed_rtt = False, probed_rtt

    # Statistics.

    @property
    def in_flight(self) -> int:
        """Bytes in flight on the present carrier, uncounted packets aside."""
        return self._estimator.in_flight

    @property
    def min_round_trip_seconds(self) -> float:
        """The smallest round trip of the last seconds, without any queue; 0: not known yet."""
        return self._estimator.min_round_trip

    @property
    def competing(self) -> bool:
        """Whether another flow fills the queue."""
        return self._competing_flows.detected

    # Sending.

    def _packet_bytes(self) -> int:
        target = self.limit / 4
        rate = self.rate_bytes_per_second
        if rate:
            seconds = _PACKET_SECONDS if rate < _FAST_FROM else _FAST_PACKET_SECONDS
            target = min(target, rate * (seconds + _STALL_PACKET_SHARE * self._stall_seconds))
        minimum = _MIN_SHORT_PATH_PACKET if self._short_path else _MIN_PACKET
        return int(min(self._limits.max_packet_bytes, max(minimum, target)))

    def room(self, now: float) -> int:
        """Bytes of bulk that may leave now: 0, or at least half a packet."""
        room, packet = self.limit - self._estimator.in_flight, self.packet_bytes
        if late := self._pacer.asked(now):
            self._stalls.observe_late(late)
        if not self._estimator.in_flight:
            return max(room, packet)
        if room * 2 < packet:
            return 0
        return 0 if not self._short_path and self._pacer.must_wait(now) else room

    def priority_room(self, now: float) -> int:
        """Bytes that streams with little queued may send now, up to a bound above the limit."""
        ahead = _PRIORITY_PACKETS * self.packet_bytes
        room = self.limit + ahead - self._estimator.in_flight
        return max(0, room if self._short_path else int(min(room, ahead - self._pacer.bytes_ahead(now))))

    def deadline(self) -> float:
        """Return when pacing allows bulk again; infinity unless pacing made the last ``room`` 0."""
        return self._pacer.deadline

    def restart(self) -> None:
        """Let the limit grow again from its minimum, because it was not needed for a while."""
        self.limit = min(self.limit, _MIN_LIMIT)
        self.packet_bytes = self._packet_bytes()

    def note_app_limited(self) -> None:
        """Note that the session has no more to send, though the limit allows more."""
        if not self._short_path:
            self._pacer.clear()
        if self._estimator.in_flight < self.limit:
            self._app_limited = True

    def sent(self, number: int, size: int, now: float) -> bool:
        """Count a numbered packet that leaves. Return whether it should request an immediate ack."""
        self._number = number
        if self._app_limited and self._estimator.in_flight + self._uncounted_bytes + size <= _UNCOUNTED_BYTES:
            if self._short_path and now < self._count_at:
                self._send_uncounted(number, size)
                return False
            self._count_at = now + _COUNT_SECONDS
        low_inflight = self._estimator.in_flight <= self._probe_rtt_limit
        if low_inflight:
            self._low_inflight_at = now
            if self._probing_rtt and not self._probe_rtt_first:
                self._probe_rtt_first = number
        self._estimator.sent(number, size, now, app_limited=self._app_limited, low_inflight=low_inflight)
        self._app_limited = False
        base_round_trip = self._estimator.base_round_trip
        if base_round_trip > PACED_PATH_SECONDS:
            self._pacer.sent(size, now, self._pace(base_round_trip))
        return self._should_request_ack(size)

    def _pace(self, base_round_trip: float) -> float:
        rate, probe = self.rate_bytes_per_second, self._bandwidth_probe
        if self._competing_flows.detected:
            return _COMPETING_PACE * self.limit / base_round_trip
        if self._probing_rtt or probe.in_startup or not rate:
            return _PACE * self.limit / base_round_trip
        # Over two round trips, because the effect of a correction takes one to be seen.
        correction = (_PACE_QUEUE_SHARE * self._slack - self._queue) / (2 * base_round_trip)
        return rate * max(_MIN_PACE, 1 + correction + probe.gain(rate, base_round_trip))

    def _send_uncounted(self, number: int, size: int) -> None:
        self._uncounted.append((number, size))
        self._uncounted_bytes += size
        self._app_limited = False

    def _should_request_ack(self, size: int) -> bool:
        self._bytes_since_request += size
        if self._bytes_since_request < min(self._ack_request_bytes, self._limits.ack_every_bytes):
            return False
        self._bytes_since_request = 0
        return True

    @property
    def _ack_request_bytes(self) -> float:
        if self.limit < _MIN_LIMIT:
            return _INITIAL_ACK_REQUEST_BYTES
        return min(
            self.limit / 4, max(_MIN_ACK_REQUEST_BYTES, self.rate_bytes_per_second * _ACK_REQUEST_SECONDS)
        )

    # Acknowledgements.

    def acked(self, number: int, stamp: int, now: float) -> None:
        """Record that the peer has all packets up to ``number``.

        ``stamp``: the peer's clock at its arrival, in microseconds modulo 2^32; 0: none.
        """
        uncounted = self._uncounted
        while uncounted and uncounted[0][0] <= number:
            self._uncounted_bytes -= uncounted.popleft()[1]
        if not self._estimator.in_flight:
            return
        if self._probe_rtt_first and number >= self._probe_rtt_first:
            self._end_probe_rtt(now)
        sample = self._estimator.acked(number, stamp, now)
        if sample is None:
            return
        self._apply_sample(sample)
        if sample.number >= self._round_end:
            self._end_round(sample, now)
        self._set_limit(sample.size)

    def _end_probe_rtt(self, now: float) -> None:
        self._probing_rtt, self._probe_rtt_first, self._probe_rtt_at = False, 0, now
        self._estimator.forget_min_delay()

    def _apply_sample(self, sample: Sample) -> None:
        if self._probing_rtt and self._unintended_queue and not self._competing_flows.detected:
            # The queue drains at the link's rate, and until it is empty every packet finds it.
            self._round_rate = self.rate_bytes_per_second = max(self._round_rate, sample.rate)
        elif not sample.app_limited or sample.rate > self.rate_bytes_per_second:
            self._round_rate = max(self._round_rate, sample.rate)
            self.rate_bytes_per_second = max(self.rate_bytes_per_second, sample.rate)
        self._round_app_limited |= sample.app_limited
        paced = self._estimator.base_round_trip > PACED_PATH_SECONDS
        queue = self._record_queue(sample) if paced else sample.queue
        self._round_queue += queue * sample.size
        self._round_bytes += sample.size

    def _record_queue(self, sample: Sample) -> float:
        """Return the sample's queue in seconds, without the packet's own send time: 5 ms of 2 Mbit/s."""
        self._stalls.observe_compression(sample.compression)
        rate, slack = self.rate_bytes_per_second, self._slack
        send_seconds = min(sample.size, self.packet_bytes) / max(1.0, rate)
        self._queue = max(0.0, sample.queue - min(send_seconds, slack))
        # Below the smallest limit bytes may wait for TCP's first window.
        if rate * self._estimator.base_round_trip > _MIN_LIMIT:
            trusted = not (self._probing_rtt or self._unintended_queue)
            self._bandwidth_probe.observe_queue(self._queue, slack, rate, trusted=trusted)
        return self._queue

    def _end_round(self, sample: Sample, now: float) -> None:
        if not self._round_probed_rtt:  # so every packet of the last probe is acknowledged
            estimator, rate = self._estimator, self.rate_bytes_per_second
            self._competing_flows.update(estimator.min_one_way_delay, estimator.min_round_trip, rate, now)
        queue = self._round_queue / max(1, self._round_bytes)
        unintended = queue > self._max_intended_queue() and not self._bandwidth_probe.active
        self._update_rate(unintended=unintended)
        if self._round_rate and not self._round_app_limited and not self._round_probed_rtt:
            self._bandwidth_probe.end_round(queue, self._slack, self.rate_bytes_per_second)
        self._stall_seconds = self._stalls.end_round(competing=self._competing_flows.detected)
        was_probing_rtt = self._probing_rtt
        self._maybe_probe_rtt(now, unintended=unintended)
        self._start_round(probed_rtt=was_probing_rtt or self._probing_rtt)

    def _update_rate(self, *, unintended: bool) -> None:
        if (unintended or self._unintended_queue) and not self._competing_flows.detected:
            self._rates.clear()  # in the next round too: its packets left before the limit fell
        if self._round_rate:
            self._rates.append(self._round_rate)
            self.rate_bytes_per_second = max(self._rates)
        self._unintended_queue = unintended

    def _maybe_probe_rtt(self, now: float, *, unintended: bool) -> None:
        base_round_trip = self._estimator.base_round_trip
        interval = _COMPETING_PROBE_RTT_SECONDS if self._competing_flows.detected else _PROBE_RTT_SECONDS
        stale = now - self._low_inflight_at > max(interval, _PROBE_RTT_ROUND_TRIPS * base_round_trip)
        early = (
            _COMPETING_EARLY_ROUND_TRIPS if self._competing_flows.detected else _EARLY_ROUND_TRIPS
        ) * base_round_trip
        if stale or (unintended and now - self._probe_rtt_at > early):
            self._probing_rtt = True
            self._bandwidth_probe.interrupt()

    # The limit.

    @property
    def _slack(self) -> float:
        """Seconds of intended queue, so that the link is never idle."""
        fast = min(1.0, max(0.0, (self.rate_bytes_per_second - _FAST_FROM) / (_FAST_TO - _FAST_FROM)))
        slack = _SLACK_SECONDS + _SLACK_SHARE * self._estimator.base_round_trip + _FAST_SLACK_SECONDS * fast
        return slack + self._stall_seconds

    def _max_intended_queue(self) -> float:
        """Seconds of queue that the limit accounts for; a longer one is unintended."""
        allowed = self._slack + _ACK_REQUEST_SECONDS
        most = allowed + max(2 * allowed, self._estimator.base_round_trip / 4)
        competing = self._competing_flows.detected
        return most + _COMPETING_GAIN * self._estimator.min_round_trip if competing else most

    @property
    def _probe_rtt_limit(self) -> float:
        share = _COMPETING_PROBE_RTT_SHARE if self._competing_flows.detected else _PROBE_RTT_SHARE
        return max(_MIN_PROBE_RTT_LIMIT, share * self.rate_bytes_per_second * self._estimator.base_round_trip)

    def _set_limit(self, acked_bytes: int) -> None:
        if self._probing_rtt:
            target = self._probe_rtt_limit
        else:
            base_round_trip, rate = self._estimator.base_round_trip, self.rate_bytes_per_second
            extra = base_round_trip * self._bandwidth_probe.gain(rate, base_round_trip)
            if self._competing_flows.detected:
                extra = max(extra, _COMPETING_GAIN * self._estimator.min_round_trip)
            target = rate * (base_round_trip + extra + self._slack) + self._ack_request_bytes
            target = max(_MIN_LIMIT, target)
        growth = _COMPETING_GROWTH if self._competing_flows.detected else 1.0
        self.limit = int(min(target, self.limit + growth * acked_bytes, self._limits.max_send_memory))
        self._short_path = self._estimator.base_round_trip <= PACED_PATH_SECONDS
        self.packet_bytes = self._packet_bytes()


class NoLimit(CongestionController):
    """No limit, no measurement, no requested acknowledgements, for comparison in benchmarks."""

    def _packet_bytes(self) -> int:
        return self._limits.max_packet_bytes

    def room(self, now: float) -> int:
        return self._limits.max_packet_bytes

    def priority_room(self, now: float) -> int:
        return self._limits.max_packet_bytes

    def note_app_limited(self) -> None:
        """Do nothing."""

    def sent(self, number: int, size: int, now: float) -> bool:
        return False

    def acked(self, number: int, stamp: int, now: float) -> None:
        """Do nothing."""
