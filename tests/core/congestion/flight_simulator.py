"""A model of the layers below a session, in virtual time, for tests of the congestion controller.

1. ``Pipe``: one direction of the bottleneck: a rate, a drop-tail queue, a delay, in IP packets.
2. ``Tcp``: the connection below a carrier, or a foreign one. Cubic with HyStart's delay rule, slow start
   again after idleness, every loss known by selective acknowledgement or by a time-out, delivery in
   order, delayed acknowledgements that travel through the other pipe. Bytes beyond the window wait in a
   socket buffer of megabytes, where a tunnel's bulk accumulates.
3. ``Wire``: loopback. It has no queue and no loss; only the time that a program takes counts there.
4. ``End``: one end of a session. Quick messages first, then bulk; packets, acknowledgements and credit as
   the session handles them. A program takes time for each packet and each byte, and may be stalled.

Not modelled: gRPC's framing (a constant per packet), pacing, TCP's window of the receiver.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from tunnel_core.congestion.acks import AckScheduler
from tunnel_core.congestion.controller import CongestionController
from tunnel_core.limits import KIB, MIB, Limits

_MSS = 1448
_HEADERS = 52
"""IP, TCP and its time stamps, in every segment."""
_PACKET_OVERHEAD = 60
"""TLS record, HTTP/2 and gRPC frames, and the fields of a packet."""
_MEGABIT = 1e6 / 8
_CONFIRMED_AFTER_SECONDS = 0.025


class Bounding(Protocol):
    """The part of a controller that an end uses: ``CongestionController`` or ``NoFlightLimit``."""

    def reset(self, now: float) -> None: ...
    def sent(self, number: int, size: int, now: float) -> bool: ...
    def acked(self, number: int, stamp: int, now: float) -> None: ...
    def note_app_limited(self) -> None: ...
    @property
    def limit(self) -> int: ...
    @property
    def competing(self) -> bool: ...
    @property
    def packet_bytes(self) -> int: ...
    def deadline(self) -> float: ...
    def room(self, now: float) -> int: ...
    def priority_room(self, now: float) -> int: ...


class NoFlightLimit:
    """No limit but the session's memory, for comparison with the congestion controller."""

    packet_bytes = 1 * MIB
    competing = False

    def __init__(self, limits: Limits) -> None:
        self._sizes: deque[tuple[int, int]] = deque()
        self.limit = limits.max_send_memory
        self.in_flight = 0

    def reset(self, now: float) -> None:
        self._sizes.clear()
        self.in_flight = 0

    def sent(self, number: int, size: int, now: float) -> bool:
        self._sizes.append((number, size))
        self.in_flight += size
        return False

    def acked(self, number: int, stamp: int, now: float) -> None:
        while self._sizes and self._sizes[0][0] <= number:
            self.in_flight -= self._sizes.popleft()[1]

    def note_app_limited(self) -> None:
        pass

    def deadline(self) -> float:
        return math.inf

    def room(self, now: float) -> int:
        return self.priority_room(now)

    def priority_room(self, now: float) -> int:
        return max(0, self.limit - self.in_flight)


def _ignore(*_: Any) -> None:
    """Ignore an event."""


class Clock:
    """Virtual time. Due calls run in order, and nothing waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._due, (when, next(self._order), call, arguments))

    def run(self, until: float) -> None:
        due = self._due
        while due and due[0][0] <= until:
            self.now, _, call, arguments = heapq.heappop(due)
            call(*arguments)
        self.now = until


class Pipe:
    """One direction of a link. ``queue_seconds``: how long its drop-tail queue is at its first rate."""

    def __init__(self, clock: Clock, megabits: float, delay: float, queue_seconds: float) -> None:
        self.delay = delay
        self.dropped = 0  # IP packets, for want of room
        self._clock = clock
        self._rate = megabits * _MEGABIT
        self._queue = max(2 * (_MSS + _HEADERS), queue_seconds * self._rate)
        self._free_at = 0.0
        self._arrives = 0.0
        self._losing = False

    def change_rate(self, megabits: float) -> None:
        waiting = max(0.0, self._free_at - self._clock.now) * self._rate
        self._rate = megabits * _MEGABIT
        self._free_at = self._clock.now + waiting / self._rate

    def lose_next(self) -> None:
        """Lose the next packet, whatever it is."""
        self._losing = True

    def send(self, size: int, call: Callable[..., None], *arguments: Any) -> None:
        now = self._clock.now
        start = max(self._free_at, now)
        if self._losing or (start - now) * self._rate + size > self._queue:
            self._losing = False
            self.dropped += 1
            return
        self._free_at = start + size / self._rate
        self._arrives = max(self._arrives, self._free_at + self.delay)  # never out of order
        self._clock.at(self._arrives, call, *arguments)


class _Segment:
    __slots__ = ("acked", "end", "retransmitted", "sent_at", "serial", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.serial = 0
        self.sent_at = 0.0
        self.acked = self.retransmitted = False


class Tcp:
    """One direction of a TCP connection. ``deliver`` gets each message when its last byte came in order."""

    def __init__(
        self, clock: Clock, there: Pipe, back: Pipe, deliver: Callable[[Any], None], buffer: int = 4 * MIB
    ) -> None:
        self.delivered = 0  # bytes, in order
        self.on_room: Callable[[], None] = _ignore
        self._clock, self._there, self._back = clock, there, back
        self._deliver = deliver
        self._buffer = buffer
        self._written = self._next = self._acked = 0
        self._messages: deque[tuple[int, Any]] = deque()
        # The sender's view.
        self._serial = itertools.count(1)
        self._flight: deque[_Segment] = deque()
        self._lost: deque[_Segment] = deque()
        self._out = 0
        self._most_out = 0  # of the round
        self._highest = 0
        self._window, self._threshold = 10.0, math.inf
        self._recovery = 0
        self._largest, self._epoch, self._reno = 0.0, math.inf, 0.0
        self._base = self._smoothed = math.inf
        self._round_end, self._round_least, self._round_samples = 0, math.inf, 0
        self._timer_started_at = 0.0
        self._backoff = 1
        self._watched = False
        # The receiver's view.
        self._early: dict[int, int] = {}
        self._owed: list[_Segment] = []

    def cut(self) -> None:
        """Break the connection; nothing of it arrives any more."""
        self._deliver = self.on_room = _ignore

    @property
    def writable(self) -> bool:
        return self._written - self._acked < self._buffer

    def write(self, message: Any, size: int) -> None:
        self._written += size
        self._messages.append((self._written, message))
        idle = self._clock.now - self._timer_started_at
        if not self._out and not self._lost and idle > max(0.2, 2 * min(self._smoothed, 1.0)):
            self._window = min(self._window, 10.0)
        self._pump()

    def _pump(self) -> None:
        while self._out < self._window:
            if self._lost:
                segment = self._lost.popleft()
                if segment.acked:
                    continue  # the segment was only late
                segment.retransmitted = True
            elif self._next < self._written:
                segment = _Segment(self._next, min(self._next + _MSS, self._written))
                self._next = segment.end
            else:
                break
            self._send(segment)
        self._most_out = max(self._most_out, self._out)

    def _send(self, segment: _Segment) -> None:
        now = self._clock.now
        if not self._out:
            self._timer_started_at = now
        segment.serial, segment.sent_at = next(self._serial), now
        self._flight.append(segment)
        self._out += 1
        self._there.send(segment.end - segment.start + _HEADERS, self._arrived, segment)
        if not self._watched:
            self._watched = True
            self._clock.at(now + self._retransmit_seconds, self._watch)

    # The receiver.

    def _arrived(self, segment: _Segment) -> None:
        in_order = segment.start == self.delivered and not self._early
        if segment.start >= self.delivered:
            self._early[segment.start] = segment.end
        while self.delivered in self._early:
            self.delivered = self._early.pop(self.delivered)
        self._owed.append(segment)
        if len(self._owed) >= 2 or not in_order:
            self._acknowledge()
        elif len(self._owed) == 1:
            self._clock.at(self._clock.now + 0.04, self._acknowledge_late, segment)
        while self._messages and self._messages[0][0] <= self.delivered:
            self._deliver(self._messages.popleft()[1])

    def _acknowledge_late(self, segment: _Segment) -> None:
        if segment in self._owed:
            self._acknowledge()

    def _acknowledge(self) -> None:
        owed, self._owed = self._owed, []
        self._back.send(_HEADERS, self._acknowledged, owed, self.delivered)

    # The sender receives the acknowledgement.

    def _acknowledged(self, segments: list[_Segment], in_order: int) -> None:
        now = self._clock.now
        self._timer_started_at, self._backoff = now, 1
        self._acked = max(self._acked, in_order)
        fresh = [segment for segment in segments if not segment.acked]
        for segment in fresh:
            segment.acked = True
            self._highest = max(self._highest, segment.serial)
            if not segment.retransmitted:
                self._sample(now - segment.sent_at)
        self._settle(in_order)
        self._grow(len(fresh), now)
        self._pump()
        self.on_room()

    def _settle(self, in_order: int) -> None:
        """Remove acknowledged segments from flight. A segment that three later ones overtook is lost."""
        while self._flight:
            head = self._flight[0]
            if not head.acked and head.end > in_order:
                if head.serial + 3 > self._highest:
                    break
                if head.serial > self._recovery:
                    self._reduce()
                self._lost.append(head)
            self._flight.popleft()
            self._out -= 1

    def _sample(self, seconds: float) -> None:
        self._base = min(self._base, seconds)
        self._smoothed = seconds if self._smoothed == math.inf else 0.875 * self._smoothed + 0.125 * seconds
        self._round_least, self._round_samples = min(self._round_least, seconds), self._round_samples + 1

    def _grow(self, count: int, now: float) -> None:
        if self._highest >= self._round_end:
            self._end_round()
        if self._window < self._threshold:
            if self._window < 2 * self._most_out:
                self._window += count
        elif self._out + count >= self._window - 1:
            self._grow_cubic(count, now)

    def _end_round(self) -> None:
        inflated = self._round_least > self._base + min(0.016, max(0.004, self._base / 8))
        if self._window < self._threshold and self._round_samples >= 8 and inflated:
            self._threshold = self._window  # HyStart
        self._round_end = self._highest + self._out + 1
        self._round_least, self._round_samples, self._most_out = math.inf, 0, self._out

    def _grow_cubic(self, count: int, now: float) -> None:
        if self._epoch == math.inf:
            self._epoch, self._reno = now, self._window
            self._largest = max(self._largest, self._window)
        inflection = ((self._largest - self._window_at_epoch()) / 0.4) ** (1 / 3)
        target = self._largest + 0.4 * (now - self._epoch + self._base - inflection) ** 3
        self._reno += 0.53 * count / self._window
        if self._reno > target:
            self._window = max(self._window, self._reno)
        elif target > self._window:
            self._window += min(0.5, (target - self._window) / self._window) * count

    def _window_at_epoch(self) -> float:
        return min(self._largest, self._threshold)

    def _reduce(self) -> None:
        self._recovery = self._flight[-1].serial
        self._largest = self._window if self._window >= self._largest else 0.85 * self._window
        self._window = self._threshold = max(2.0, 0.7 * self._window)
        self._largest = max(self._largest, self._window)
        self._epoch = math.inf

    @property
    def _retransmit_seconds(self) -> float:
        return (0.2 + 2 * self._smoothed if self._smoothed < math.inf else 1.0) * self._backoff

    def _watch(self) -> None:
        """Start the retransmission timer."""
        now, due = self._clock.now, self._timer_started_at + self._retransmit_seconds
        if not self._out and not self._lost:
            self._watched = False
            return
        if now >= due - 1e-9:
            self._reduce_to_one(now)
            due = now + self._retransmit_seconds
        self._clock.at(due, self._watch)

    def _reduce_to_one(self, now: float) -> None:
        self._lost.extendleft(segment for segment in reversed(self._flight) if not segment.acked)
        self._recovery = max([self._recovery, *(segment.serial for segment in self._flight)])
        self._flight.clear()
        self._out = 0
        self._threshold, self._window = max(2.0, 0.7 * self._window), 1.0
        self._epoch, self._timer_started_at, self._backoff = math.inf, now, min(64, 2 * self._backoff)
        self._pump()


class Wire:
    """Loopback: it takes everything, which arrives after ``delay``."""

    writable = True

    def __init__(self, clock: Clock, delay: float, deliver: Callable[[Any], None]) -> None:
        self._clock, self._delay, self._deliver = clock, delay, deliver
        self.on_room: Callable[[], None] = _ignore

    def write(self, message: Any, size: int) -> None:
        self._clock.at(self._clock.now + self._delay, self._deliver, message)


class Foreign:
    """A bulk flow outside of the tunnel, over its own TCP connection."""

    def __init__(self, clock: Clock, there: Pipe, back: Pipe) -> None:
        self._clock = clock
        self.tcp = Tcp(clock, there, back, _ignore)
        self.tcp.on_room = self.start

    def stop(self) -> None:
        """End the flow once its written bytes have arrived."""
        self.tcp.on_room = _ignore

    def start(self) -> None:
        while self.tcp.writable:
            self.tcp.write(None, 64 * KIB)


class Message(NamedTuple):
    """A keystroke on its way there, or its echo on its way back."""

    typed_at: float
    echo: bool


class Sent(NamedTuple):
    """A packet of the model."""

    number: int
    ack: int
    stamp: int
    ack_immediately: bool
    messages: list[Message]
    bulk: int
    credit: int


class Costs(NamedTuple):
    """The seconds that a program spends."""

    packet: float = 0.0
    byte: float = 0.0


class End:
    """One end of a session: the mux's scheduling, the session's numbers, and a program's loop."""

    def __init__(
        self,
        clock: Clock,
        flight: Bounding,
        limits: Limits,
        *,
        costs: Costs | None = None,
        window: int = 8 * MIB,
        clock_offset: float = 0.0,
    ) -> None:
        self.flight = flight
        self.bulk_left = 0.0
        self.bulk_received = 0
        self.echoes: list[tuple[float, float]] = []  # when typed, seconds until the echo
        self.bare = 0  # acks in packets of their own
        self.peer: End
        self._carrier: Tcp | Wire
        self._clock, self._limits, self._costs, self._window = clock, limits, costs or Costs(), window
        self._offset = clock_offset
        self._ack_scheduler = AckScheduler(limits, _CONFIRMED_AFTER_SECONDS)
        self._priority: deque[Message] = deque()
        self._number = self._received = 0
        self._credit = window  # total bulk that the peer takes
        self._bulk_sent, self._granted = 0, window
        self._inbox: deque[tuple[Sent, int]] = deque()
        self._busy_until = 0.0
        self._turn_due = False
        self._reads_next = True
        self._timer = math.inf

    @property
    def _now(self) -> float:
        """Each end has a clock of its own."""
        return self._clock.now + self._offset

    def attach(self, carrier: Tcp | Wire) -> None:
        self._carrier = carrier
        carrier.on_room = self.wake

    def type_key(self) -> None:
        self._priority.append(Message(self._now, echo=False))
        self.wake()

    def start_bulk(self) -> None:
        self.bulk_left = math.inf
        self.wake()

    def move(self, carrier: Tcp) -> None:
        """Move to a new carrier. The model loses the packets under way; more bulk and keys always follow."""
        self._inbox.clear()
        self._received = self.peer._number
        self._priority.clear()
        self.flight.reset(self._now)
        self.attach(carrier)

    def stall(self, seconds: float) -> None:
        """Stall the program for so many seconds."""
        self._busy_until = max(self._busy_until, self._clock.now) + seconds

    def arrived(self, sent: tuple[Sent, int]) -> None:
        self._inbox.append(sent)
        self.wake()

    def wake(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self._clock.at(max(self._clock.now, self._busy_until), self._turn)

    def _turn(self) -> None:
        """Reads and writes in turn, one packet each, as the two tasks of a carrier do."""
        self._turn_due = False
        if self._busy_until > self._clock.now:
            self.wake()
            return
        did = (self._read() or self._write()) if self._reads_next else (self._write() or self._read())
        self._reads_next = not self._reads_next
        if did:
            self.wake()
            return
        due = min(self._ack_scheduler.due, self.flight.deadline())
        if self._now < due < self._timer:
            self._timer = due
            self._clock.at(due - self._offset + 1e-6, self._ring)  # after it, rounded or not

    def _ring(self) -> None:
        self._timer = math.inf
        self.wake()

    def _spend(self, size: int) -> None:
        cost = self._costs.packet + self._costs.byte * size
        self._busy_until = self._clock.now + cost

    def _read(self) -> bool:
        if not self._inbox:
            return False
        packet, size = self._inbox.popleft()
        now = self._now
        self._spend(size)
        if packet.ack:
            self.flight.acked(packet.ack, packet.stamp, now)
        if packet.number:
            self._received = packet.number
            self._ack_scheduler.received(size, now, at_once=packet.ack_immediately)
        self._credit = max(self._credit, packet.credit)
        self.bulk_received += packet.bulk
        for message in packet.messages:
            if message.echo:
                self.echoes.append((message.typed_at, now - message.typed_at))
            else:
                self._priority.append(Message(message.typed_at, echo=True))
        return True

    def _write(self) -> bool:
        if not self._carrier.writable:
            return False
        packet = self._next_packet()
        if packet is None:
            return False
        size = packet.bulk + 64 * len(packet.messages) + _PACKET_OVERHEAD
        self._spend(size)
        self._clock.at(self._busy_until, self._carrier.write, (packet, size), size)
        return True

    def _next_packet(self) -> Sent | None:
        now, messages = self._now, list[Message]()
        while self._priority and 64 * len(messages) < self.flight.priority_room(now):
            messages.append(self._priority.popleft())
        bulk = int(min(self.bulk_left, self._credit - self._bulk_sent))
        if not bulk:
            self.flight.note_app_limited()
        bulk = min(bulk, self.flight.room(now), self.flight.packet_bytes)
        credit = self._new_grant()
        if not messages and not bulk and not credit:
            if self._ack_scheduler.due > now:
                return None
            self.bare += 1
            return self._with_ack(Sent(0, self._received, 0, False, [], 0, 0))
        self._number += 1
        self.bulk_left -= bulk
        self._bulk_sent += bulk
        at_once = self.flight.sent(self._number, bulk + 64 * len(messages) + _PACKET_OVERHEAD, now)
        return self._with_ack(Sent(self._number, self._received, 0, at_once, messages, bulk, credit))

    def _with_ack(self, packet: Sent) -> Sent:
        return packet._replace(stamp=self._ack_scheduler.sent())

    def _new_grant(self) -> int:
        """Grant credit as the mux does: a quarter of the window at a time."""
        if self.bulk_received + self._window - self._granted < self._window // 4:
            return 0
        self._granted = self.bulk_received + self._window
        return self._granted


class Link:
    """A session over one bottleneck: a server and an agent, each with its congestion controller."""

    def __init__(
        self,
        megabits: float,
        round_trip: float,
        queue_seconds: float,
        *,
        bounded: bool = True,
        costs: Costs | None = None,
    ) -> None:
        self.clock, self.limits = Clock(), Limits()
        self._costs = costs
        self.megabits, self.round_trip = megabits, round_trip
        self.server, self.agent = (self._end(bounded, offset) for offset in (0.0, 1234.5))
        self.server.peer, self.agent.peer = self.agent, self.server
        self.down, self.up = (Pipe(self.clock, megabits, round_trip / 2, queue_seconds) for _ in range(2))
        self._tcps = self._connect()
        self.server.attach(self._tcps[0])
        self.agent.attach(self._tcps[1])

    def _end(self, bounded: bool, offset: float) -> End:
        flight = CongestionController(self.limits, offset) if bounded else NoFlightLimit(self.limits)
        return End(self.clock, flight, self.limits, costs=self._costs, clock_offset=offset)

    def _connect(self) -> tuple[Tcp, Tcp]:
        return (
            Tcp(self.clock, self.down, self.up, self.agent.arrived),
            Tcp(self.clock, self.up, self.down, self.server.arrived),
        )

    def type_keys(self, every: float = 0.097) -> None:
        """Type keys from now on, at an interval that never synchronises with other events."""
        self.server.type_key()
        self.clock.at(self.clock.now + every, self.type_keys, every)

    def change(self, *, megabits: float | None = None, round_trip: float | None = None) -> None:
        for pipe in (self.down, self.up):
            if megabits is not None:
                pipe.change_rate(megabits)
            if round_trip is not None:
                pipe.delay = round_trip / 2

    def roam(self, megabits: float, round_trip: float, queue_seconds: float) -> None:
        """Change the network: nothing of the old carrier arrives any more."""
        for tcp in self._tcps:
            tcp.cut()
        self.down, self.up = (Pipe(self.clock, megabits, round_trip / 2, queue_seconds) for _ in range(2))
        self._tcps = self._connect()
        self.server.move(self._tcps[0])
        self.agent.move(self._tcps[1])

    def share(self, end: End, since: float, received_then: int) -> float:
        """Return the part of the link's bytes, headers included, that arrived as bulk at ``end``."""
        seconds = self.clock.now - since
        return (end.bulk_received - received_then) / (self.megabits * _MEGABIT * seconds)

    def key_extra(self, since: float, share: float = 0.99, until: float = math.inf) -> float:
        """Return this percentile of echo time above the round trip, for keys typed in the given time."""
        echoes = [seconds for typed, seconds in self.server.echoes if since <= typed < until]
        return percentile(echoes, share) - self.round_trip


class Loopback:
    """A session with the programs, and not the link, as the bottleneck."""

    def __init__(self, streams: int, *, bounded: bool, mebibytes: float = 600) -> None:
        self.clock, limits = Clock(), Limits()
        costs = Costs(packet=100e-6, byte=1 / (mebibytes * MIB))
        window = streams * limits.max_credit
        self.server, self.agent = (
            End(
                self.clock,
                CongestionController(limits, 0.0) if bounded else NoFlightLimit(limits),
                limits,
                costs=costs,
                window=window,
            )
            for _ in range(2)
        )
        self.server.attach(Wire(self.clock, 50e-6, self.agent.arrived))
        self.agent.attach(Wire(self.clock, 50e-6, self.server.arrived))


def stall_often(clock: Clock, end: End, chance: random.Random, longest: float, every: float) -> None:
    """Stall ``end`` for up to ``longest`` seconds, about once in ``every``, as a busy machine does."""
    end.stall(chance.uniform(0, longest))
    pause = chance.expovariate(1 / every)
    clock.at(clock.now + pause, stall_often, clock, end, chance, longest, every)


def starve(clock: Clock, end: End, share: float, period: float) -> None:
    """Let ``end`` run for ``share`` of each ``period`` seconds only, as a quota of its processor does.

    Its kernel acknowledges TCP's segments and sends from the socket's buffer all the time.
    """
    end.stall((1 - share) * period)
    clock.at(clock.now + period, starve, clock, end, share, period)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
