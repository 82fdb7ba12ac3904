"""Congestion controller, cap and session together, over a slow wire in virtual time."""

from __future__ import annotations

import math
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fakes.memory_link import welcome
from tunnel_core.congestion.token_bucket import TokenBucket
from tunnel_core.limits import KIB, MIB, Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.mux.mux import Mux
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.session.profiles import profile_of
from tunnel_core.session.protocol import SessionProtocol
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.frames import Data, DataParts, Open, Packet, Ping

LIMITS = Limits(initial_credit=8 * MIB, max_credit=8 * MIB)
REQUEST = Open(0, "localhost:22", "operator", "tcp", 0)
RATE, DELAY = 250_000, 0.05  # 2 Mbit/s, 100 ms there and back
_BELOW = 50
"""Bytes of the layers below a packet."""


class Site:
    """A server's and an agent's session over a wire with a rate and a delay each way."""

    def __init__(self, *, rate: float = RATE, delay: float = DELAY, cap: TokenBucket | None = None) -> None:
        self.now = 0.0
        self.opened: list[StreamState] = []
        self.rate, self.delay = rate, delay
        self.cap = cap
        profile, offer = profile_of(metered=False), welcome(LIMITS)
        self.mux = Mux(LIMITS, CreditPool(0), opener=True)
        far = Mux(LIMITS, CreditPool(0), opener=False, on_open=self.opened.append)
        self.server = SessionProtocol(self.mux, LIMITS, offer, profile, pings=False, now=0.0, cap=cap)
        self.agent = SessionProtocol(far, LIMITS, offer, profile, pings=True, now=0.0)
        self.wires: dict[SessionProtocol, deque[tuple[float, bytes]]] = {
            self.server: deque(),
            self.agent: deque(),
        }
        self.free_at = {self.server: 0.0, self.agent: 0.0}
        self.wakes = 0

    def open(self) -> tuple[StreamState, StreamState]:
        near = self.mux.open(REQUEST)
        self.run(0.5)
        self.opened[-1].accept("")
        self.run(0.5)
        return near, self.opened[-1]

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            for session in self.wires:
                self._send(session)
            due = min(self.server.deadline(), self.agent.deadline())
            arrivals = [wire[0][0] for wire in self.wires.values() if wire]
            due = max(self.now, min([due, end, *arrivals]))
            if due >= end:
                self.now = end
                return
            self.wakes += 1
            self.now = due
            self._arrive()
            for session in self.wires:
                session.tick(self.now)

    def _send(self, session: SessionProtocol) -> None:
        while (packet := session.next_packet(self.now)) is not None:
            data = encode_packet(*packet)
            if session is self.server and self.cap is not None:
                self.cap.take(len(data), self.now)
            seconds = (len(data) + _BELOW) / self.rate
            self.free_at[session] = max(self.now, self.free_at[session]) + seconds
            self.wires[session].append((self.free_at[session] + self.delay, data))

    def _arrive(self) -> None:
        for source, sink in ((self.server, self.agent), (self.agent, self.server)):
            wire = self.wires[source]
            while wire and wire[0][0] <= self.now:
                data = wire.popleft()[1]
                packet = decode_packet(data)
                assert isinstance(packet, Packet)
                sink.receive(packet, len(data), self.now)


def drain(stream: StreamState) -> int:
    count = 0
    while stream.recv.buffered:
        count += len(stream.read(1 << 20))
    return count


def test_bulk_does_not_pile_up_before_a_slow_link_and_fills_it() -> None:
    site = Site()
    near, far = site.open()
    near.push(bytes(4 * MIB))
    site.run(2)
    waiting = 0.0
    before = far.recv.received
    for _ in range(80):
        site.run(0.05)
        waiting = max(waiting, site.free_at[site.server] - site.now)
    assert waiting < 0.05
    assert far.recv.received - before > 0.9 * 4 * RATE


def test_a_keystroke_passes_bulk() -> None:
    site = Site()
    bulk, _ = site.open()
    keys, far = site.open()
    bulk.push(bytes(4 * MIB))
    site.run(2)
    for _ in range(20):
        site.run(0.11)
        keys.push(b"k")
        site.run(DELAY + 0.06)
        assert drain(far) == 1


def test_a_lone_packet_may_always_leave() -> None:
    site = Site()
    near, _ = site.open()
    site.server.congestion.limit = 1
    near.push(bytes(100 * KIB))
    packet = site.server.next_packet(site.now)
    assert packet is not None and packet.number


def test_control_and_ends_are_sent_although_the_limit_is_reached() -> None:
    site = Site()
    near, _ = site.open()
    done, _ = site.open()
    near.push(bytes(4 * MIB))
    while site.server.next_packet(site.now):
        pass
    done.end()
    site.mux.open(REQUEST)
    packet = site.server.next_packet(site.now)
    assert packet is not None and not any(isinstance(frame, Data | DataParts) for frame in packet.frames)
    assert [type(frame).__name__ for frame in packet.frames] == ["Open", "End"]


def test_without_acks_no_more_bulk_is_sent_and_one_ack_releases_more() -> None:
    site = Site()
    near, _ = site.open()
    near.push(bytes(4 * MIB))
    sent = []
    for _ in range(100):  # pacing lets a packet out now and then, until the flight is full
        site.now += 0.1
        while packet := site.server.next_packet(site.now):
            sent.append(packet)
    assert 0 < site.mux.unacked_bytes <= site.server.congestion.limit
    assert not site.server.may_send(site.now) and site.server.send_budget.due == math.inf
    site.server.receive(Packet(0, sent[-1].number, ()), 10, site.now)
    assert site.server.may_send(site.now)


def test_bytes_in_flight_near_the_limit_request_an_ack_and_get_it() -> None:
    site = Site(rate=100 * MIB, delay=0.001)  # nothing is paced on so short a path
    near, _ = site.open()
    near.push(bytes(4 * MIB))
    packets = []
    while packet := site.server.next_packet(site.now):
        packets.append(packet)
    asking = next(packet for packet in packets if packet.ack_immediately)
    for packet in packets[: packets.index(asking) + 1]:
        site.agent.receive(packet, 1000, site.now)
    answer = site.agent.next_packet(site.now)
    assert answer is not None and answer.ack == asking.number
    assert answer.arrived == int(site.now * 1e6) and not answer.number


def test_paced_bytes_get_one_time_at_which_they_may_leave() -> None:
    site = Site()
    near, _ = site.open()
    near.push(bytes(4 * MIB))
    site.run(2)
    server = site.server
    for _ in range(1000):
        site.run(0.001)
        if site.now < server.send_budget.due < math.inf:
            break
    due = server.send_budget.due
    assert server.deadline() <= due < math.inf
    assert server.tick(due) and server.send_budget.due == math.inf
    assert not server.tick(due)  # while a write is under way no packet is requested, and no timer runs
    assert server.next_packet(due) is not None


@pytest.mark.parametrize("idle_seconds", [1.5, 60.0])
def test_a_path_that_became_slow_during_a_rest_gets_no_limit_of_the_fast_one(idle_seconds: float) -> None:
    site = Site(rate=100 * MIB, delay=0.0002)
    near, far = site.open()
    near.push(bytes(8 * MIB))
    site.run(2)
    assert drain(far) == 8 * MIB and site.server.congestion.limit > 512 * KIB
    site.run(idle_seconds)
    site.rate, site.delay = 2_500_000, 0.025
    near.push(bytes(8 * MIB))
    longest_queue = 0.0
    for _ in range(100):
        site.run(0.02)
        longest_queue = max(longest_queue, site.free_at[site.server] - site.now)
    assert longest_queue < 0.2
    assert drain(far) > 0.8 * 2 * site.rate


def test_a_limit_in_use_is_not_started_again_by_a_short_rest() -> None:
    site = Site(rate=100 * MIB, delay=0.0002)
    near, far = site.open()
    for _ in range(5):
        near.push(bytes(4 * MIB))
        site.run(0.5)
        assert drain(far) == 4 * MIB
        assert site.server.congestion.limit > 512 * KIB


def test_keystrokes_alone_do_not_keep_a_limit() -> None:
    site = Site(rate=100 * MIB, delay=0.0002)
    near, far = site.open()
    near.push(bytes(8 * MIB))
    site.run(2)
    assert drain(far) == 8 * MIB
    for _ in range(20):
        near.push(b"key")
        site.run(0.1)
    assert site.server.congestion.limit <= 32 * KIB


def test_a_new_carrier_has_a_controller_of_its_own() -> None:
    site = Site()
    near, _ = site.open()
    near.push(bytes(4 * MIB))
    site.run(2)
    flight = site.server.congestion
    assert flight.in_flight and flight.rate_bytes_per_second
    for wire in site.wires.values():
        wire.clear()
    last = site.server._number
    site.server.move(site.agent.received, site.now)
    site.agent.move(site.server.received, site.now)
    assert not flight.in_flight and not flight.rate_bytes_per_second
    site.server.receive(Packet(0, last, ()), 10, site.now)  # the packet left over the old carrier
    assert not flight.rate_bytes_per_second
    site.run(30)
    assert site.opened[0].recv.received == 4 * MIB and not site.mux.unacked_bytes


def test_the_cap_holds_data_and_nothing_else() -> None:
    site = Site(rate=100 * MIB, delay=0.001, cap=TokenBucket(100_000))
    near, far = site.open()
    near.push(bytes(1 * MIB))
    site.run(1)
    before = far.recv.received
    site.run(5)
    assert 0.85 * 500_000 < far.recv.received - before <= 505_000
    assert site.cap is not None and site.cap.delayed_seconds > 4
    while site.server.next_packet(site.now):
        site.cap.take(5000, site.now)
    site.server.receive(Packet(0, 0, (Ping(77),)), 10, site.now)
    packet = site.server.next_packet(site.now)
    assert packet is not None and [type(frame).__name__ for frame in packet.frames] == ["Pong"]
    assert site.now < site.server.deadline() <= site.now + 1


def test_a_session_without_data_is_not_held_by_the_cap() -> None:
    cap = TokenBucket(1000)
    site = Site(cap=cap)
    site.open()
    cap.take(100_000, site.now)
    assert site.server.next_packet(site.now) is None
    assert site.server.send_budget.due == math.inf and not cap.delayed_seconds


def test_the_timer_does_not_spin() -> None:
    site = Site(cap=TokenBucket(100_000))
    near, _ = site.open()
    near.push(bytes(4 * MIB))
    site.wakes = 0
    site.run(10)
    assert site.wakes < 10 * 400


@settings(deadline=None, max_examples=30)
@given(
    rate=st.floats(2e4, 1e8),
    delay=st.floats(0, 1),
    sizes=st.lists(st.integers(1, 200_000), min_size=1, max_size=8),
    stalls=st.lists(st.floats(0, 3), max_size=4),
)
def test_everything_arrives_over_any_link(
    rate: float, delay: float, sizes: list[int], stalls: list[float]
) -> None:
    """This holds even if the reverse path stops now and then."""
    site = Site(rate=rate, delay=delay)
    streams = [site.mux.open(REQUEST) for _ in sizes]
    site.run(3)
    for stream, size in zip(streams, sizes, strict=True):
        stream.push(bytes(size))
        stream.end()
    for stall in stalls:
        site.free_at[site.agent] = max(site.free_at[site.agent], site.now) + stall
        site.run(1)
    site.run(sum(sizes) / rate * 3 + 20 * delay + sum(stalls) + 2)
    assert [stream.recv.received for stream in site.opened] == sizes
    assert all(stream.recv.size is not None for stream in site.opened)
    assert not site.mux.unacked_bytes


@pytest.mark.parametrize("flight_limit", [True, False])
def test_the_limit_can_be_switched_off_for_comparison(flight_limit: bool) -> None:
    limits = Limits(initial_credit=8 * MIB, flight_limit=flight_limit)
    mux = Mux(limits, CreditPool(0), opener=True)
    session = SessionProtocol(mux, limits, welcome(limits), profile_of(metered=False), pings=False, now=0.0)
    mux.open(REQUEST).push(bytes(4 * MIB))
    while session.next_packet(0.0):
        pass
    assert (mux.unacked_bytes == 4 * MIB) is not flight_limit
