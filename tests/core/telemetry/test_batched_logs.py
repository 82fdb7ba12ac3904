from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler

import pytest
import trio
from trio.testing import MockClock

from tunnel_core.config.types import LogFormat, LogLevel
from tunnel_core.telemetry import logs
from tunnel_core.telemetry.batched_logs import start_log_batching

log = logging.getLogger("qanat.test")
INFO, WARNING = logging.INFO, logging.WARNING


@pytest.fixture(autouse=True)
def no_other_handlers() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def run(*steps: object) -> list[str]:
    """What had been written after each step: a number sleeps so long, a pair is logged, a callable called."""
    output = io.StringIO()
    logs.setup(LogLevel.INFO, LogFormat.TEXT, output)
    seen: list[str] = []

    def written() -> str:
        return " ".join(line.split()[-1] for line in output.getvalue().splitlines())

    async def main() -> None:
        start_log_batching()
        for number, step in enumerate(steps):
            if isinstance(step, float):
                await trio.sleep(step)
            elif isinstance(step, tuple) and number % 2:
                log.log(*step)
            elif isinstance(step, tuple):
                logs.log_event(log, *step)
            elif callable(step):
                await step()
            seen.append(written())

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return [*seen, written()]


def test_lines_are_written_together_in_their_order_and_soon() -> None:
    first, second = (INFO, "one"), (INFO, "two")
    assert run(first, 0.03, second, 0.03, 1.0) == ["", "", "", "one two", "one two", "one two"]


def test_the_next_batch_waits_as_long() -> None:
    assert run((INFO, "one"), 1.0, (INFO, "two"), 0.04, 0.02) == ["", *["one"] * 3, *["one two"] * 2]


def test_a_warning_waits_for_nothing_and_lets_none_wait() -> None:
    assert run((INFO, "one"), (WARNING, "two")) == ["", "one two", "one two"]


def test_lines_that_are_held_back_are_bounded() -> None:
    written = run(*[(INFO, str(number)) for number in range(300)])
    assert written[254] == ""
    assert len(written[256].split()) == 256


def test_a_line_of_another_thread_is_written_at_once() -> None:
    async def elsewhere() -> None:
        await trio.to_thread.run_sync(log.info, "there")

    assert run(elsewhere) == ["there", "there"]


def test_the_end_leaves_nothing_behind_and_the_handler_as_it_was() -> None:
    assert run((INFO, "one")) == ["", "one"]
    assert not any(isinstance(handler, MemoryHandler) for handler in logging.getLogger().handlers)


def test_a_crash_writes_its_lines_first() -> None:
    async def fail() -> None:
        log.info("before")
        raise ValueError("a fault")

    output = io.StringIO()
    logs.setup(LogLevel.INFO, LogFormat.TEXT, output)

    async def main() -> None:
        start_log_batching()
        await fail()

    with pytest.raises(ValueError, match="a fault"):
        trio.run(main)
    assert "before" in output.getvalue()
