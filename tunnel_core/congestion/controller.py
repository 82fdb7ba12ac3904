"""How many bytes of a session are under way on its carrier. No I/O, no clock.

1. The problem. Below us are buffers of megabytes: gRPC, the socket, the modem. What is handed to them
   can no longer be overtaken, so a keystroke waits behind it: 2.4 s on 20 Mbit/s. So no more is handed
   over than the link carries in a round trip, and a little that waits, so that it is never idle.
2. The limit is rate x (path + slack) + what comes between two confirmations. Rate and path come from
   confirmations (``rate_estimator.py``); path is the round trip of now without the part that waits on the way
   there. It follows routes, and what the way back suffers from other bulk does not starve us.
3. Rate is the maximum of some round trips, since it falls short whenever we send less. But while a queue
   stands that we do not intend, the link carries what it can: then the newest round trip has the rate,
   and its best sample, because what was behind a lost segment comes late and all at once.
   A sample from a packet after which the program had no more to send never lowers it.
4. A new carrier starts small and grows until a queue begins to stand; later, while none does
   (``probing.py``). A limit grows by what was confirmed at most, so growth comes as no burst.
5. Every few seconds, or when an unintended queue stands, the limit *dips* below what the path holds: the
   packets sent then are lean, they find no queue of ours and tell what the path itself takes. (BBR's
   PROBE_RTT, shallower.) What drains in a dip was ours, what stays is the route's or a rival's.
6. With a rival (``competition.py``) the limit is a multiple of the path, which holds the rival's queue: more
   than TCP below us can use, so that TCP competes as it does for everybody. Bounded all the same.
7. Bulk is paced on long paths (``pacer.py``), at the rate and a little more or less, so that half the
   slack waits: a limit alone lets confirmations that come in bursts, as they do behind bulk of the other
   direction (Zhang, Shenker and Clark 1991), make bursts of both. Pacing is the only use of a timer.
   Quick bytes may be a little ahead of limit and pace.
8. Nothing under way: one packet may always go. Whatever a peer confirms or stamps, nothing stops. While
   only keystrokes are under way on a short path they are counted now and then: counting costs more.
9. The receiver confirms on its own rarely (``acks.py``); ``sent`` tells when to ask it to.

Not done here: whose bytes go (the mux), what was said and confirmed (the session), fairness among
sessions on one link (each holds a few milliseconds). Packets of an older carrier are no samples.
BBR: draft-cardwell-iccrg-bbr-congestion-control. docs/congestion.md has what was tried instead.
"""

from __future__ import annotations

from collections import deque

from tunnel_core.congestion.competition import CompetingFlowDetector
from tunnel_core.congestion.pacer import PACED_PATH_SECONDS, Pacer
from tunnel_core.congestion.probing import BandwidthProbe
from tunnel_core.congestion.rate_estimator import RateEstimator, Sample
from tunnel_core.limits import KIB, MIB, Limits

_FIRST_LIMIT = 8 * KIB
"""Bytes in flight on a new carrier. Less than TCP's own first window (RFC 6928), because they leave as a
burst: a queue of eight segments holds it. A carrier that loses its first packets is slow for many round
trips."""
_LEAST_LIMIT = 16 * KIB
"""Bytes in flight at least: twelve of the smallest packets. Fewer make no stream of acknowledgements."""
_LEAST_PROBE_RTT_LIMIT = 4 * KIB
_LEAST_PACKET, _LEAST_NEAR_PACKET = 1280, 2 * KIB
"""Bytes of the smallest packet of bulk: with its headers one segment. TCP counts segments, and part of one
takes as much of its window. On short paths the price of a packet counts."""
_QUICK_PACKETS = 2
"""Packets by which quick bytes may exceed limit and pace. Keystrokes fit; many uploads that begin at once do
not."""
_PACKET_SECONDS = 0.004
"""Time that one packet takes at the rate of the link. A keystroke may find one packet before it."""
_FAST_PACKET_SECONDS = 0.01
"""The same on a fast link, where a packet costs the program's time: a busy program would make more packets,
and be busier."""
_ASK_SECONDS = 0.006
"""Time between acknowledgements that the sender asks for: 170 a second at most, 1-2 % of a CPU and of a slow
way back."""
_LEAST_ASK = 4 * KIB
"""Bytes between them at least: 16 ms of 2 Mbit/s, where a bare acknowledgement is 3 % of what it
acknowledges."""
_FIRST_ASK = 1 * KIB
"""Until a carrier has got going the first packet of bulk asks: what is known of the path holds a delay."""
_UNCOUNTED_BYTES = 2 * KIB
_COUNT_SECONDS = 0.02
"""On short paths, while so little is under way, those between two samples are not counted."""
_SLACK_SECONDS = 0.005
"""Time that bytes in flight may wait below this program, because what waits there cannot be overtaken."""
_SLACK_SHARE = 1 / 30
"""Part of the path that is added to the slack, because jitter and the error of the estimate grow with the
path."""
_FAST_SLACK_SECONDS = 0.045
"""Time that is added to the slack where no modem is below: there the stalls of a scheduler are the jitter,
and memory is the price."""
_FAST_FROM, _FAST_TO = 100 * MIB, 300 * MIB
"""Rates in bytes a second between which the slack grows from the small one to the large one."""
_RIVAL_GAIN = 1.75
"""Beyond the path. With 0.5 TCP's window was at times not filled: our share beside cubic was 0.35."""
_PROBE_RTT_SHARE, _RIVAL_PROBE_RTT_SHARE = 0.75, 1.0
"""Of the path: deep enough for a rate taken too high by a fifth. Beside a rival a deep dip is a gift."""
_RIVAL_GROWTH = 0.4
"""Of what was confirmed: TCP, which has room after a dip, would lose most of a burst."""
_PROBE_RTT_SECONDS, _RIVAL_PROBE_RTT_SECONDS = 2.5, 6.0
_PROBE_RTT_PATHS = 10
"""Dips cost a quarter of a path: 3 % at most."""
_SOON_PATHS, _RIVAL_SOON_PATHS = 4, 12
"""Between dips for unintended queues: the last one must have shown its effect."""
_RATE_ROUNDS = 10
"""BBR's window; the dips are shorter."""
_PACE, _RIVAL_PACE = 1.05, 1.25
"""Just above the limit over the path, where the rate is not known or is not what counts."""
_PACE_AIM = 1 / 2
"""Part of the slack for which paced packets wait."""
_LEAST_PACE = 0.8
"""Of the rate: a queue drains no faster, or one late packet would stop all."""


class CongestionController:
    """The bound of one session. ``reset`` for each carrier; numbers go on rising across them."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._number = 0
        self.reset(now)

    def reset(self, now: float) -> None:
        """A new carrier: nothing of the old one is believed, nor counted as under way."""
        self.limit = _FIRST_LIMIT
        """Bytes that may be in flight."""
        self.rate_bytes_per_second = 0.0
        self._near = False
        self.packet_bytes = self._packet_bytes()
        """The most that one packet should hold."""
        self._uncounted: deque[tuple[int, int]] = deque()  # number and size of what is under way besides
        self._uncounted_bytes = 0
        self._count_at = now
        self._rate_estimator = RateEstimator()
        self._competing_flows = CompetingFlowDetector(now)
        self._rates: deque[float] = deque(maxlen=_RATE_ROUNDS)
        self._bandwidth_probe = BandwidthProbe()
        self._queue = 0.0  # seconds of it, as the newest sample on a paced path found it
        self._surprised = False  # by a queue that stood unintended in the last round
        self._app_limited = False
        self._asked_bytes = 0
        self._pacer = Pacer(now)
        self._low_inflight_at = self._probe_rtt_at = now
        self._probing_rtt = False
        self._probe_rtt_first = 0  # the first lean packet of the dip
        self._start_round(dipped=False)

    def _start_round(self, *, dipped: bool) -> None:
        self._round_end = self._number + 1
        self._round_rate = self._round_queue = 0.0
        self._round_bytes = 0
        self._round_app_limited, self._round_probed_rtt = False, dipped

    # What others may know.

    @property
    def in_flight(self) -> int:
        return self._rate_estimator.in_flight

    @property
    def min_round_trip_seconds(self) -> float:
        """Without what waits, ours or others', in the last seconds; 0: not known yet."""
        return self._rate_estimator.shortest

    @property
    def competing(self) -> bool:
        """Whether another flow fills the queue."""
        return self._competing_flows.present

    # Sending.

    def _packet_bytes(self) -> int:
        wish = self.limit / 4
        rate = self.rate_bytes_per_second
        if rate:
            wish = min(wish, rate * (_PACKET_SECONDS if rate < _FAST_FROM else _FAST_PACKET_SECONDS))
        least = _LEAST_NEAR_PACKET if self._near else _LEAST_PACKET
        return int(min(self._limits.max_packet_bytes, max(least, wish)))

    def room(self, now: float) -> int:
        """Bytes of bulk that may leave now: 0, or at least half a packet."""
        room, packet = self.limit - self._rate_estimator.in_flight, self.packet_bytes
        self._pacer.let_go()
        if not self._rate_estimator.in_flight:
            return max(room, packet)
        if room * 2 < packet:
            return 0
        return 0 if not self._near and self._pacer.is_held(now) else room

    def priority_room(self, now: float) -> int:
        """Bytes that may leave now for streams with little queued: above the limit, but bounded too."""
        ahead = _QUICK_PACKETS * self.packet_bytes
        room = self.limit + ahead - self._rate_estimator.in_flight
        return max(0, room if self._near else int(min(room, ahead - self._pacer.owed(now))))

    def deadline(self) -> float:
        """When ``room``, which was 0 at the last call for the sake of pacing, will not be."""
        return self._pacer.deadline

    def note_app_limited(self) -> None:
        """The session had nothing more to send, though it might have."""
        if self._rate_estimator.in_flight < self.limit:
            self._app_limited = True

    def sent(self, number: int, size: int, now: float) -> bool:
        """A numbered packet leaves. True: it should ask for a confirmation at once."""
        self._number = number
        if (
            self._app_limited
            and self._rate_estimator.in_flight + self._uncounted_bytes + size <= _UNCOUNTED_BYTES
        ):
            if self._near and now < self._count_at:
                self._leave_uncounted(number, size)
                return False
            self._count_at = now + _COUNT_SECONDS
        low_inflight = self._rate_estimator.in_flight <= self._probe_rtt_limit
        if low_inflight:
            self._low_inflight_at = now
            if self._probing_rtt and not self._probe_rtt_first:
                self._probe_rtt_first = number
        self._rate_estimator.sent(number, size, now, app_limited=self._app_limited, low_inflight=low_inflight)
        self._app_limited = False
        base_round_trip = self._rate_estimator.base_round_trip
        if base_round_trip > PACED_PATH_SECONDS:
            self._pacer.sent(size, now, self._pace(base_round_trip))
        return self._asks(size)

    def _pace(self, base_round_trip: float) -> float:
        rate, growth = self.rate_bytes_per_second, self._bandwidth_probe
        if self._competing_flows.present:
            return _RIVAL_PACE * self.limit / base_round_trip
        if self._probing_rtt or growth.new or not rate:
            return _PACE * self.limit / base_round_trip
        # In two round trips, because it takes one to see what the last correction did.
        correction = (_PACE_AIM * self._slack - self._queue) / (2 * base_round_trip)
        return rate * max(_LEAST_PACE, 1 + correction + growth.gain(rate, base_round_trip))

    def _leave_uncounted(self, number: int, size: int) -> None:
        self._uncounted.append((number, size))
        self._uncounted_bytes += size
        self._app_limited = False

    def _asks(self, size: int) -> bool:
        self._asked_bytes += size
        if self._asked_bytes < min(self._ask_bytes, self._limits.ack_every_bytes):
            return False
        self._asked_bytes = 0
        return True

    @property
    def _ask_bytes(self) -> float:
        if self.limit < _LEAST_LIMIT:
            return _FIRST_ASK
        return min(self.limit / 4, max(_LEAST_ASK, self.rate_bytes_per_second * _ASK_SECONDS))

    # Confirmations.

    def acked(self, number: int, stamp: int, now: float) -> None:
        """The peer has everything up to ``number``. ``stamp``: when it came there; 0: not told."""
        uncounted = self._uncounted
        while uncounted and uncounted[0][0] <= number:
            self._uncounted_bytes -= uncounted.popleft()[1]
        if not self._rate_estimator.in_flight:
            return
        if self._probe_rtt_first and number >= self._probe_rtt_first:
            self._end_probe_rtt(now)
        sample = self._rate_estimator.acked(number, stamp, now)
        if sample is None:
            return
        self._take(sample)
        if sample.number >= self._round_end:
            self._end_round(sample, now)
        self._set_limit(sample.size)

    def _end_probe_rtt(self, now: float) -> None:
        self._probing_rtt, self._probe_rtt_first, self._probe_rtt_at = False, 0, now
        self._rate_estimator.forget_unloaded()

    def _take(self, sample: Sample) -> None:
        if self._probing_rtt and self._surprised and not self._competing_flows.present:
            # The queue drains at the link's rate, and until it has no packet is lean.
            self._round_rate = self.rate_bytes_per_second = max(self._round_rate, sample.rate)
        elif not sample.app_limited or sample.rate > self.rate_bytes_per_second:
            self._round_rate = max(self._round_rate, sample.rate)
            self.rate_bytes_per_second = max(self.rate_bytes_per_second, sample.rate)
        self._round_app_limited |= sample.app_limited
        queue = (
            sample.queue
            if self._rate_estimator.base_round_trip <= PACED_PATH_SECONDS
            else self._look_at_queue(sample)
        )
        self._round_queue += queue * sample.size
        self._round_bytes += sample.size

    def _look_at_queue(self, sample: Sample) -> float:
        """Seconds of queue without what the packet itself takes to leave: 8 ms of 2 Mbit/s."""
        rate, slack = self.rate_bytes_per_second, self._slack
        own = min(sample.size, self.packet_bytes) / max(1.0, rate)
        self._queue = max(0.0, sample.queue - min(own, slack))
        if (
            rate * self._rate_estimator.base_round_trip > _LEAST_LIMIT
        ):  # below, what waits may wait for TCP's first window
            trusted = not (self._probing_rtt or self._surprised)
            self._bandwidth_probe.found_queue(self._queue, slack, rate, trusted=trusted)
        return self._queue

    def _end_round(self, sample: Sample, now: float) -> None:
        if not self._round_probed_rtt:  # all lean packets of the last dip were seen, not its first alone
            delivery, rate = self._rate_estimator, self.rate_bytes_per_second
            self._competing_flows.look(delivery.min_one_way_delay, delivery.shortest, rate, now)
        queue = self._round_queue / max(1, self._round_bytes)
        unintended = queue > self._most_intended and not self._bandwidth_probe.on
        self._judge_rate(unintended=unintended)
        if self._round_rate and not self._round_app_limited and not self._round_probed_rtt:
            self._bandwidth_probe.end_round(queue, self._slack, self.rate_bytes_per_second)
        was_probing_rtt = self._probing_rtt
        self._maybe_probe_rtt(now, unintended=unintended)
        self._start_round(dipped=was_probing_rtt or self._probing_rtt)

    def _judge_rate(self, *, unintended: bool) -> None:
        if (unintended or self._surprised) and not self._competing_flows.present:
            self._rates.clear()  # also in the round after, whose packets left before the limit fell
        if self._round_rate:
            self._rates.append(self._round_rate)
            self.rate_bytes_per_second = max(self._rates)
        self._surprised = unintended

    def _maybe_probe_rtt(self, now: float, *, unintended: bool) -> None:
        base_round_trip = self._rate_estimator.base_round_trip
        every = _RIVAL_PROBE_RTT_SECONDS if self._competing_flows.present else _PROBE_RTT_SECONDS
        stale = now - self._low_inflight_at > max(every, _PROBE_RTT_PATHS * base_round_trip)
        soon = (_RIVAL_SOON_PATHS if self._competing_flows.present else _SOON_PATHS) * base_round_trip
        if stale or (unintended and now - self._probe_rtt_at > soon):
            self._probing_rtt = True
            self._bandwidth_probe.disturbed()

    # The limit.

    @property
    def _slack(self) -> float:
        """Seconds of what may wait, so that the link is never idle."""
        fast = (self.rate_bytes_per_second - _FAST_FROM) / (_FAST_TO - _FAST_FROM)
        return (
            _SLACK_SECONDS
            + _SLACK_SHARE * self._rate_estimator.base_round_trip
            + _FAST_SLACK_SECONDS * min(1.0, max(0.0, fast))
        )

    @property
    def _rival_extra(self) -> float:
        return _RIVAL_GAIN * self._rate_estimator.shortest if self._competing_flows.present else 0.0

    @property
    def _most_intended(self) -> float:
        """Seconds of queue above which it is none that the limit allows for."""
        allowed = self._slack + _ASK_SECONDS
        return allowed + self._rival_extra + max(2 * allowed, self._rate_estimator.base_round_trip / 4)

    @property
    def _probe_rtt_limit(self) -> float:
        share = _RIVAL_PROBE_RTT_SHARE if self._competing_flows.present else _PROBE_RTT_SHARE
        return max(
            _LEAST_PROBE_RTT_LIMIT, share * self.rate_bytes_per_second * self._rate_estimator.base_round_trip
        )

    def _set_limit(self, fresh: int) -> None:
        if self._probing_rtt:
            wish = self._probe_rtt_limit
        else:
            base_round_trip, rate = self._rate_estimator.base_round_trip, self.rate_bytes_per_second
            extra = max(
                self._rival_extra, base_round_trip * self._bandwidth_probe.gain(rate, base_round_trip)
            )
            wish = rate * (base_round_trip + extra + self._slack) + self._ask_bytes
            wish = max(_LEAST_LIMIT, wish)
        grown = self.limit + (_RIVAL_GROWTH * fresh if self._competing_flows.present else fresh)
        self.limit = int(min(wish, grown, self._limits.max_send_memory))
        self._near = self._rate_estimator.base_round_trip <= PACED_PATH_SECONDS
        self.packet_bytes = self._packet_bytes()


class NoLimit(CongestionController):
    """Bounds nothing, measures nothing, asks for no confirmation: what the flight limit is compared with."""

    def _packet_bytes(self) -> int:
        return self._limits.max_packet_bytes

    def room(self, now: float) -> int:
        return self._limits.max_packet_bytes

    def priority_room(self, now: float) -> int:
        return self._limits.max_packet_bytes

    def note_app_limited(self) -> None:
        """Of no interest."""

    def sent(self, number: int, size: int, now: float) -> bool:
        return False

    def acked(self, number: int, stamp: int, now: float) -> None:
        """Of no interest."""
