"""The wait of a relay's task: what ends it, and when."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tunnel_core.streams.half_closed import CHECK_SECONDS
from tunnel_core.streams.relay_wait import RelayWait


async def waited_seconds(wait: RelayWait) -> float:
    start = trio.current_time()
    with trio.fail_after(100):
        await wait.wait()
    return trio.current_time() - start


async def test_a_wake_ends_one_wait_also_when_it_came_before() -> None:
    wait = RelayWait()
    wait.wake()
    await wait.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        wait.wake()
    assert not wait.is_over
    wait.close()


async def test_a_cancelled_wait_loses_no_wake() -> None:
    wait = RelayWait()
    with trio.move_on_after(0):
        await wait.wait()
    wait.wake()
    await wait.wait()


@pytest.mark.parametrize("is_reset", [False, True])
async def test_an_end_interrupts_a_busy_task_and_lasts(is_reset: bool) -> None:
    wait = RelayWait()
    with trio.CancelScope() as busy:
        wait.interrupt = busy.cancel
        (wait.end_by_reset if is_reset else wait.end)()
        await trio.sleep_forever()
    assert busy.cancelled_caught
    await wait.wait()
    assert wait.is_over and wait.was_reset is is_reset


async def test_it_ends_with_the_second_half(autojump_clock: MockClock) -> None:
    wait = RelayWait()
    wait.half_ended()
    assert not wait.is_over
    wait.half_ended()
    assert wait.is_over and await waited_seconds(wait) == 0
    wait.close()


async def test_it_ends_some_seconds_after_one_half_for_each_relay(autojump_clock: MockClock) -> None:
    first, second, closed = RelayWait(), RelayWait(), RelayWait()
    first.half_ended()
    closed.half_ended()
    await trio.sleep(1)
    second.half_ended()
    closed.close()
    assert await waited_seconds(first) == pytest.approx(CHECK_SECONDS - 1)
    assert first.is_over and not second.is_over and not closed.is_over
    assert await waited_seconds(second) == pytest.approx(1)
    later = RelayWait()
    await trio.sleep(10)
    later.half_ended()
    assert await waited_seconds(later) == pytest.approx(CHECK_SECONDS)
    assert not closed.is_over
