"""Freed memory goes back to the kernel once after each spell of work, and not between two transfers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio
from trio.testing import MockClock

from tunnel_core.runtime.code_pages import find_unmap
from tunnel_core.runtime.memory_return import (
    LONGEST_SECONDS,
    LOOK_SECONDS,
    START_SECONDS,
    TrimSchedule,
    find_returns,
    find_trim,
    return_memory,
)


def looks(schedule: TrimSchedule, *shares: float) -> list[bool]:
    """Look every ``LOOK_SECONDS``; between two looks the process uses such shares of a core."""
    now = used = 0.0
    answers = []
    for share in shares:
        now += LOOK_SECONDS
        used += share * LOOK_SECONDS
        answers.append(schedule.is_due(now, used))
    return answers


def test_once_at_the_first_quiet_look_after_work() -> None:
    schedule = TrimSchedule(0, 0)
    assert looks(schedule, 0.9, 0.5, 0.0, 0.0, 0.0) == [False, False, True, False, False]


def test_again_after_the_next_work() -> None:
    schedule = TrimSchedule(0, 0)
    assert looks(schedule, 0.9, 0.0, 0.0, 0.9, 0.0, 0.0) == [False, True, False, False, True, False]


def test_an_idle_process_returns_nothing() -> None:
    assert not any(looks(TrimSchedule(0, 0), *[0.0001] * 400))


def test_work_that_is_always_slow_counts_together() -> None:
    answers = looks(TrimSchedule(0, 0), *[0.003] * 200)  # 20 Mbit/s
    assert answers.count(True) == 5


def test_a_process_that_is_never_quiet_returns_memory_once_a_minute() -> None:
    answers = looks(TrimSchedule(0, 0), *[1.0] * 60)
    assert answers.count(True) == 60 * LOOK_SECONDS / LONGEST_SECONDS


def test_a_process_that_was_stopped_is_judged_by_its_own_time() -> None:
    schedule = TrimSchedule(0, 0)
    assert not schedule.is_due(LOOK_SECONDS, 9.0)
    assert schedule.is_due(1000 + LOOK_SECONDS, 10.0)


async def test_the_task_returns_memory_after_the_start_and_when_due(autojump_clock: MockClock) -> None:
    trims: list[float] = []
    others: list[float] = []
    used = 0.0
    with trio.move_on_after(100):
        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            returns = [lambda: trims.append(trio.current_time()), lambda: others.append(trio.current_time())]
            nursery.start_soon(return_memory, returns, lambda: used)
            await trio.sleep(START_SECONDS + 1)
            used = 9.0
            await trio.sleep(90)
    started = began + START_SECONDS
    assert trims == pytest.approx([started, started + 2 * LOOK_SECONDS])
    assert others == trims


async def test_a_system_that_takes_nothing_back_has_no_task() -> None:
    assert find_trim(object()) is None
    with trio.fail_after(5):
        await return_memory(())


def test_this_system_returns_both_where_it_can() -> None:
    assert len(find_returns()) == (find_trim() is not None) + (find_unmap() is not None)


PROGRAM = """
import trio
from tunnel_core.runtime import memory_return
from tunnel_core.runtime.memory_tuning import tune_memory

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

def work():
    kept, packets = [], []
    for number in range(64):  # a block behind each packet keeps malloc from trimming by itself
        packets.append(b"x" * (1 << 20))
        kept.append(bytes([number]) * 40_000)
    return kept

async def main():
    trim = memory_return.find_trim()
    print(trim is not None, flush=True)
    if trim is None:
        return
    start = resident()
    kept = work()
    after = resident()
    used = [9.0, 0.0]
    memory_return.START_SECONDS = memory_return.LOOK_SECONDS = 0.01
    async with trio.open_nursery() as nursery:
        returned = trio.Event()
        calls = []
        def trim_and_note():
            calls.append(1)
            trim()
            if len(calls) == 2:
                returned.set()
        cpu_seconds = lambda: used.pop() if len(used) > 1 else 9.0
        nursery.start_soon(memory_return.return_memory, [trim_and_note], cpu_seconds)
        await returned.wait()
        nursery.cancel_scope.cancel()
    print(after - start, resident() - start, len(kept))

tune_memory()
trio.run(main)
"""


def test_the_resident_size_of_a_real_process() -> None:
    command = [sys.executable, "-c", PROGRAM]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout  # noqa: S603 - ours
    has_trim, *figures = out.split()
    if has_trim != "True":
        pytest.skip("this C library has no malloc_trim")
    after, left, _ = map(int, figures)
    assert after > 60 << 10, "KiB that malloc keeps while the process works"
    assert left < 8 << 10
