"""The congestion controller alone: its invariants, its samples, and the start of a carrier."""

from __future__ import annotations

import math
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.congestion.acks import STAMP_MODULUS
from tunnel_core.congestion.controller import CongestionController
from tunnel_core.limits import KIB, Limits

LIMITS = Limits()


class Step(NamedTuple):
    """The next step of a session: ``kind`` with one argument."""

    kind: str
    argument: int
    seconds: float


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(["send", "send", "quick", "ack", "idle", "reset"]),
        st.integers(0, STAMP_MODULUS - 1),
        st.floats(0, 30) | st.floats(0, 0.01),
    ),
    max_size=150,
)


def hold_invariants(flight: CongestionController, now: float) -> None:
    room = flight.room(now)
    assert 4 * KIB <= flight.limit <= LIMITS.max_send_memory
    assert 1280 <= flight.packet_bytes <= LIMITS.max_packet_bytes
    assert room >= 0
    assert flight.priority_room(now) >= 0
    assert flight.in_flight >= 0
    assert 0 <= flight.rate_bytes_per_second < math.inf
    assert 0 <= flight.min_round_trip_seconds < math.inf
    if not flight.in_flight:
        assert room >= flight.packet_bytes, "a lone packet may always go"
        assert flight.deadline() == math.inf
    if room == 0 and flight.in_flight * 2 < flight.limit:
        assert now < flight.deadline() < math.inf, "only the pace holds it, and it says until when"


@given(steps)
def test_no_ack_and_no_stamp_of_the_peer_stops_sending(story: list[Step]) -> None:
    now, number, flight = 100.0, 0, CongestionController(LIMITS, 100.0)
    for step in story:
        now += step.seconds
        if step.kind in ("send", "priority"):
            room = flight.room(now) if step.kind == "send" else min(64, flight.priority_room(now))
            if room:
                number += 1
                flight.sent(number, min(room, flight.packet_bytes), now)
        elif step.kind == "ack":
            flight.acked(step.argument % (number + 1), step.argument, now)
        elif step.kind == "idle":
            flight.note_app_limited()
        else:
            flight.reset(now)
        hold_invariants(flight, now)
    flight.acked(number, 0, now)
    assert flight.in_flight == 0


def stamp(seconds: float, clock_offset: float = 4321.0) -> int:
    return int((seconds + clock_offset) * 1e6) % STAMP_MODULUS or 1


def exchange(
    flight: CongestionController, first: int, count: int, *, start: float, offset: float = 4321.0
) -> float:
    """Exchange packets of 10,000 bytes each 10 ms, 20 ms there, 30 ms back; returns the last ack's time."""
    events = [(start + 0.01 * i, "sent", first + i) for i in range(count)]
    events += [(start + 0.01 * i + 0.05, "acked", first + i) for i in range(count)]
    for when, kind, number in sorted(events):
        if kind == "sent":
            flight.sent(number, 10_000, when)
        else:
            flight.acked(number, stamp(when - 0.03, offset), when)
    return max(events)[0]


def test_rate_and_round_trip_come_from_acks() -> None:
    flight = CongestionController(LIMITS, 0.0)
    exchange(flight, 1, 100, start=1.0)
    assert math.isclose(flight.rate_bytes_per_second, 1e6, rel_tol=0.05)
    assert math.isclose(flight.min_round_trip_seconds, 0.05, rel_tol=0.05)


def test_the_peers_clock_may_wrap() -> None:
    flight = CongestionController(LIMITS, 0.0)
    exchange(flight, 1, 100, start=1.0, offset=STAMP_MODULUS / 1e6 - 1.5)
    assert math.isclose(flight.rate_bytes_per_second, 1e6, rel_tol=0.05)
    assert math.isclose(flight.min_round_trip_seconds, 0.05, rel_tol=0.05)


def test_a_burst_of_acks_is_no_higher_rate() -> None:
    flight = CongestionController(LIMITS, 0.0)
    end = exchange(flight, 1, 100, start=1.0)
    for i in range(40):
        flight.sent(101 + i, 10_000, end + 0.01 * i)
    for i in range(40):  # all acks delayed on the way back
        flight.acked(101 + i, stamp(end + 0.01 * i + 0.02), end + 0.5 + 0.0001 * i)
    assert flight.rate_bytes_per_second < 1.2e6


def test_a_sample_of_an_idle_program_never_lowers_the_rate() -> None:
    flight = CongestionController(LIMITS, 0.0)
    now = exchange(flight, 1, 100, start=1.0)
    for number in range(101, 140):
        flight.note_app_limited()
        flight.sent(number, 64, now)
        flight.acked(number, stamp(now + 0.02), now + 0.05)
        now += 0.1
    assert flight.rate_bytes_per_second > 0.9e6


def test_a_new_carrier_uses_no_estimate_of_the_old_one() -> None:
    flight = CongestionController(LIMITS, 0.0)
    now = exchange(flight, 1, 100, start=1.0)
    flight.sent(101, 10_000, now)
    flight.reset(now)
    assert (flight.limit, flight.in_flight, flight.rate_bytes_per_second) == (8 * KIB, 0, 0.0)
    flight.sent(102, 10_000, now)
    flight.acked(101, stamp(now), now + 0.01)
    assert flight.in_flight == 10_000
    assert flight.rate_bytes_per_second == 0.0


def test_bytes_in_flight_at_the_limit_let_urgent_bytes_through_up_to_a_budget() -> None:
    flight = CongestionController(LIMITS, 0.0)
    number = 0
    while flight.room(0.0):
        number += 1
        flight.sent(number, flight.packet_bytes, 0.0)
    assert 0 < flight.priority_room(0.0) <= 2 * flight.packet_bytes
    flight.sent(number + 1, flight.priority_room(0.0), 0.0)
    assert flight.priority_room(0.0) == 0


def test_an_ack_is_requested_several_times_in_each_round_trip() -> None:
    flight = CongestionController(LIMITS, 0.0)
    asked = [flight.sent(number, 512, 0.0) for number in range(1, 17)]
    assert asked.count(True) == 8
