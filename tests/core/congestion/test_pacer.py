"""Pacing: no burst, no making up for pauses, and always a date to ask again."""

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
"""What may leave at once: unused time, and the packet that is let go with it."""


def leave(pacing: Pacer, pauses: list[float]) -> list[float]:
    """Packets that leave as soon as they may, after the pauses of their program; when they left."""
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


def test_who_always_has_something_gets_the_whole_rate() -> None:
    times = leave(Pacer(100.0), [0.0] * 200)
    assert 199 * SIZE / (times[-1] - times[0]) == pytest.approx(RATE, rel=0.02)


def test_nothing_is_held_before_the_first_packet() -> None:
    pacing = Pacer(100.0)
    assert not pacing.must_wait(100.0)
    assert pacing.deadline == math.inf
    assert pacing.bytes_ahead(100.0) == 0


def test_what_does_not_wait_is_owed() -> None:
    pacing = Pacer(100.0)
    for total in accumulate([SIZE] * 5):
        pacing.sent(SIZE, 100.0, RATE)
        assert pacing.bytes_ahead(100.0) == pytest.approx(total)
    assert pacing.bytes_ahead(101.0) == 0


def test_what_is_let_go_has_no_deadline() -> None:
    pacing = Pacer(100.0)
    pacing.sent(8 * SIZE, 100.0, RATE)
    assert pacing.must_wait(100.0)
    assert 100.0 < pacing.deadline < 100.1
    pacing.clear()
    assert pacing.deadline == math.inf
