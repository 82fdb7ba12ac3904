"""The queue of certificate requests: order, waits, and the retry time when the queue is full."""

from __future__ import annotations

import itertools

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tunnel_server.pki.enrolment.queue import LATEST_SECONDS, SOONEST_SECONDS, EnrolmentQueue, QueueFull


async def test_turns_come_in_order_and_at_the_pace(autojump_clock: trio.testing.MockClock) -> None:
    line, began = EnrolmentQueue(pace_seconds=0.5, return_seconds=1), trio.current_time()
    turns: list[tuple[int, float]] = []

    async def ask(number: int) -> None:
        async with line.turn(3):
            turns.append((number, trio.current_time() - began))

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(ask, number)
            await trio.testing.wait_all_tasks_blocked()
    assert [number for number, _ in turns] == [0, 1, 2]
    assert [at for _, at in turns] == pytest.approx([0, 0.5, 1])
    assert line.present == 0


async def test_without_a_pace_one_that_comes_later_does_not_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    line = EnrolmentQueue(pace_seconds=0, return_seconds=1)
    for _ in range(3):
        async with line.turn(1):
            began = trio.current_time()
    assert trio.current_time() == began


async def test_a_request_that_leaves_the_queue_frees_its_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    line = EnrolmentQueue(pace_seconds=60, return_seconds=1)
    async with line.turn(1):
        pass
    with trio.move_on_after(1):
        async with line.turn(1):
            raise AssertionError("a turn before its time")
    assert line.present == 0
    async with line.turn(1):
        assert line.present == 1


@given(st.lists(st.floats(0, 30), min_size=1, max_size=60), st.sampled_from([0.02, 0.5, 7.0]))
def test_each_refused_request_gets_a_retry_time_of_its_own(pauses: list[float], spacing: float) -> None:
    clock = trio.testing.MockClock()
    times: list[float] = []

    async def come() -> None:
        line = EnrolmentQueue(pace_seconds=0, return_seconds=spacing)
        for pause in pauses:
            clock.jump(pause)
            with pytest.raises(QueueFull, match="0 requests") as sent:
                async with line.turn(0):
                    raise AssertionError("there is no room")
            assert SOONEST_SECONDS <= sent.value.seconds <= LATEST_SECONDS
            times.append(trio.current_time() + sent.value.seconds)

    trio.run(come, clock=clock)
    if max(times) - min(times) + spacing < LATEST_SECONDS / 2:
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert all(gap >= spacing - 1e-6 for gap in gaps)
