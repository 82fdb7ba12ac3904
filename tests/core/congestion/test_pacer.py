"""The pacer: no burst, no catching up after pauses, and always a time of the next try."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.congestion.pacer import Pacer

RATE = 250_000.0
SIZE = 1400
BURST = 0.004 * RATE + SIZE
"""Bytes that may leave at once: unused time, and the packet that is released with it."""


def leave(pacing: Pacer, pauses: list[float]) -> list[float]:
    """Send packets as soon as they may leave, after their program's pauses; returns the times."""
    now, times = 100.0, []
    for pause in pauses:
        now += pause
        if pacing.must_wait(now):
            now = pacing.deadline
        assert not pacing.must_wait(now), "the deadline is the time when it may leave"
        pacing.sent(SIZE, now, RATE)
        times.append(now)
    return times


@given(st.lists(st.just(0.0) | st.floats(0, 0.5), min_size=2, max_size=60))
def test_in_no_time_more_leaves_than_the_rate_and_a_small_burst(pauses: list[float]) -> None:
    times = leave(Pacer(100.0), pauses)
    for first, start in enumerate(times):
        for count, end in enumerate(times[first:], start=1):
            assert count * SIZE <= RATE * (end - start) + BURST + 1


def test_a_busy_sender_gets_the_whole_rate() -> None:
    times = leave(Pacer(100.0), [0.0] * 200)
    assert 199 * SIZE / (times[-1] - times[0]) == pytest.approx(RATE, rel=0.02)


def test_nothing_is_held_before_the_first_packet() -> None:
    pacing = Pacer(100.0)
    assert not pacing.must_wait(100.0)
    assert pacing.deadline == math.inf
    assert pacing.bytes_ahead(100.0) == 0


def test_bytes_that_did_not_wait_are_owed() -> None:
    pacing = Pacer(100.0)
    for total in accumulate([SIZE] * 5):
        pacing.sent(SIZE, 100.0, RATE)
        assert pacing.bytes_ahead(100.0) == pytest.approx(total)
    assert pacing.bytes_ahead(101.0) == 0


@pytest.mark.parametrize(("late", "caught_up"), [(0.09, 0.09), (3.0, 0.1)])
def test_a_late_program_catches_up_without_a_long_burst(late: float, caught_up: float) -> None:
    pacing = Pacer(100.0)
    pacing.sent(8 * SIZE, 100.0, RATE)
    assert pacing.must_wait(100.0)
    now = pacing.deadline + late
    assert pacing.asked(now) == pytest.approx(late)
    sent = 0
    while not pacing.must_wait(now):
        pacing.sent(SIZE, now, RATE)
        sent += SIZE
    assert sent == pytest.approx(caught_up * RATE, abs=SIZE)


def test_a_program_without_bulk_is_not_late() -> None:
    pacing = Pacer(100.0)
    pacing.sent(8 * SIZE, 100.0, RATE)
    assert pacing.must_wait(100.0)
    pacing.clear()
    assert pacing.asked(200.0) == 0.0
    assert pacing.late_seconds == 0.0


def test_a_released_pacer_has_no_deadline() -> None:
    pacing = Pacer(100.0)
    pacing.sent(8 * SIZE, 100.0, RATE)
    assert pacing.must_wait(100.0)
    assert 100.0 < pacing.deadline < 100.1
    pacing.clear()
    assert pacing.deadline == math.inf
