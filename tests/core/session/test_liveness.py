"""Pings, silence and lateness in virtual time, without a session around them."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.support.fakes.memory_link import welcome
from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason
from tunnel_core.session.liveness import Liveness
from tunnel_core.session.profiles import profile_of
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Ping

LIMITS, DEFAULT, START = Limits(), profile_of(metered=False), 100.0
INTERVAL = LIMITS.ping_interval_seconds


def agent(limits: Limits = LIMITS) -> Liveness:
    return Liveness(limits, welcome(limits), DEFAULT, pings=True, now=START)


def server(limits: Limits = LIMITS) -> Liveness:
    return Liveness(limits, welcome(limits), DEFAULT, pings=False, now=START)


def ping(one: Liveness, now: float) -> Ping:
    frame = one.ping(now, is_queued=False)
    assert frame is not None
    return frame


def time_of_death(one: Liveness) -> float:
    """Return seconds from the start until the peer is declared dead, if nothing arrives."""
    for _ in range(1000):
        now = max(one.deadline(), START)
        try:
            if one.check(now):
                one.ping(now, is_queued=False)
        except ProtocolError as fault:
            assert fault.reason is Reason.PING_TIMEOUT
            return now - START
    raise AssertionError("it lives for ever")


def test_the_agent_pings_at_once_and_then_every_interval() -> None:
    one = agent()
    assert one.check(START)
    frame = ping(one, START)
    one.pong_received(frame.token, START + 0.01)
    assert one.deadline() == START + INTERVAL
    assert not one.check(START + INTERVAL - 0.001)
    assert one.check(START + INTERVAL)


def test_the_server_never_pings() -> None:
    one = server()
    assert not one.check(one.deadline() - 0.001)
    assert not one.check(one.deadline()), "the first check only doubts"


def test_moving_bytes_make_pings_frequent() -> None:
    one = agent()
    one.pong_received(ping(one, START).token, START)
    one.bytes_at = START
    assert one.deadline() == START + DEFAULT.active_ping_seconds


def test_a_late_pong_makes_pings_frequent() -> None:
    one = agent()
    ping(one, START)
    assert one.deadline() == START + one.response_timeout_seconds
    ping(one, START + one.response_timeout_seconds)
    assert one.deadline() == START + one.response_timeout_seconds + DEFAULT.active_ping_seconds


def test_silence_is_death() -> None:
    assert 5 <= time_of_death(agent()) <= 8
    assert INTERVAL + 5 <= time_of_death(server()) <= INTERVAL + 6
    busy = server()
    busy.bytes_at = START
    assert 5 <= time_of_death(busy) <= 7


def test_two_checks_must_find_the_silence() -> None:
    one = server()
    paused_until = START + 1000
    assert not one.check(paused_until)
    assert one.deadline() == paused_until + 1
    one.last_received_at = paused_until
    one.ping_received(0, paused_until)
    assert not one.check(paused_until + 2)
    assert one.deadline() > paused_until + INTERVAL


def test_a_peer_that_sends_is_not_dead_however_late_its_pongs() -> None:
    one = agent()
    now = START
    for _ in range(100):
        now += 1
        one.last_received_at = now
        one.ping(now, is_queued=False)


def test_a_pong_gives_a_sample_and_its_ping_is_done_with() -> None:
    one = agent()
    frame = ping(one, START)
    assert one.is_asking
    one.pong_received(frame.token, START + 0.25)
    assert one.round_trip_seconds == 0.25
    assert not one.is_asking
    assert ping(one, START + 1).round_trip_us == 250_000


def test_a_pong_that_nothing_asked_for_gives_no_sample() -> None:
    one = agent()
    one.pong_received(77, START)
    frame = ping(one, START)
    one.pong_received(frame.token + 1, START + 1)
    assert one.round_trip_seconds is None
    assert one.is_asking


def test_a_ping_that_is_queued_already_is_not_sent_twice() -> None:
    one = agent()
    assert one.ping(START, is_queued=True) is None
    assert not one.is_asking
    assert one.deadline() == START + INTERVAL, "the next one is counted from here"


def test_a_slow_link_is_given_four_round_trips() -> None:
    one = server()
    one.ping_received(2_000_000, START)
    assert one.response_timeout_seconds == 8.0
    assert one.late_at(START) == START + 8
    assert one.late_since(START, START + 7.9) == math.inf
    assert one.late_since(START, START + 8) == START


def test_one_long_sample_counts_an_eighth_and_a_short_one_half() -> None:
    one = server()
    one.ping_received(1_000_000, START)
    one.ping_received(9_000_000, START + 1)
    assert one.response_timeout_seconds == 4 * 2.0
    one.ping_received(1_000_000, START + 2)
    assert one.response_timeout_seconds == 4 * 1.5


def test_without_a_ping_interval_nothing_is_ever_due() -> None:
    one = server(Limits(ping_interval_seconds=0))
    assert one.deadline() == one.late_at(math.inf) == math.inf


def test_a_new_carrier_is_pinged_at_once_and_owes_no_old_pong() -> None:
    one = agent()
    frame = ping(one, START)
    one.pause()
    assert not one.is_asking
    one.start(START + 5)
    assert one.last_received_at == START + 5
    assert one.check(START + 5)
    one.pong_received(frame.token, START + 6)
    assert one.round_trip_seconds is None


@given(st.lists(st.tuples(st.integers(0, 2**64), st.floats(0, 100)), max_size=20))
def test_no_round_trip_from_a_peer_makes_the_wait_endless(reported: list[tuple[int, float]]) -> None:
    one, now = server(), START
    for microseconds, seconds in reported:
        now += seconds
        one.last_received_at = now
        one.ping_received(microseconds, now)
        assert LIMITS.late_seconds <= one.response_timeout_seconds <= 4 * 60
        assert now + INTERVAL < one.deadline() <= now + INTERVAL * (1 + LIMITS.missed_pings)
