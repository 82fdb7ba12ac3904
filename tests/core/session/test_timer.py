"""The dates of a session, and the sleep that ends at the first of them."""

from __future__ import annotations

import math

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tunnel_core.session.timer import Timer, round_up_deadline


async def wake_time(timer: Timer, look_at: float) -> float:
    await timer.sleep(look_at)
    return trio.current_time()


async def test_it_sleeps_until_the_first_date(autojump_clock: MockClock) -> None:
    timer, start = Timer(), trio.current_time()
    assert await wake_time(timer, start + 3) == start + 3
    timer.send_at = start + 4
    assert await wake_time(timer, start + 5) == start + 4
    timer.stop_deferring()
    assert await wake_time(timer, start + 5) == start + 5


async def test_a_date_that_comes_closer_ends_the_sleep(autojump_clock: MockClock) -> None:
    timer, start = Timer(), trio.current_time()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            assert await wake_time(timer, start + 100) == start + 7

        await trio.sleep(1)
        timer.wake_by(start + 50)
        timer.wake_by(start + 70)
        timer.defer(6)
        timer.defer(9)
        assert (timer.wake_at, timer.send_at) == (start + 50, start + 7)


async def test_what_is_sent_before_its_date_wakes_nobody(autojump_clock: MockClock) -> None:
    timer, start = Timer(), trio.current_time()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            assert await wake_time(timer, start + 10) == start + 10

        await trio.sleep(1)
        timer.defer(1)
        timer.stop_deferring()


async def test_it_can_be_asked_to_look_at_once(autojump_clock: MockClock) -> None:
    timer, start = Timer(), trio.current_time()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            assert await wake_time(timer, math.inf) == start + 2

        await trio.sleep(2)
        timer.wake_now(trio.current_time())


@given(st.floats(0, 1e6), st.floats(-10, 1e6))
def test_only_far_deadlines_are_rounded_and_never_early(now: float, ahead: float) -> None:
    deadline = now + ahead
    rounded = round_up_deadline(deadline, now)
    assert deadline <= rounded <= deadline + 0.05 + 1e-6
    if deadline <= now + 5:
        assert rounded == deadline
    elif rounded != deadline:
        assert rounded * 20 == pytest.approx(round(rounded * 20))
    assert round_up_deadline(math.inf, now) == math.inf
