from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from logging.handlers import MemoryHandler
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tunnel_core.config.types import LogFormat, LogLevel
from tunnel_core.reasons import Reason
from tunnel_core.telemetry import logs
from tunnel_core.telemetry.batched_logs import _Batches, start_log_batching
from tunnel_core.telemetry.queued_output import QueuedOutput

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


def _through_the_queue(log_format: LogFormat, log_some: Callable[[], None]) -> list[str]:
    """Lines that the real output writes while `log_some` runs in a batch."""
    reader, writer = os.pipe()
    output = QueuedOutput(writer)
    logs.setup(LogLevel.INFO, log_format, output)

    async def main() -> None:
        start_log_batching()
        await trio.testing.wait_all_tasks_blocked()
        log_some()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert output.drain(10)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as written:
        return written.read().splitlines()


def _log_some() -> None:
    log.info("a record")
    logs.log_event(log, INFO, "an event\x1b", reason=Reason.DONE, n=1, ratio=1 / 3, text="é \n", none=None)
    logs.log_event(log, INFO, "a name of every line", level="forged", time="never", more="kept")
    log.info("another record")
    logs.log_event(log, WARNING, "written at once")


@pytest.mark.parametrize("log_format", [LogFormat.JSON, LogFormat.TEXT])
def test_a_line_has_the_same_text_with_and_without_a_record(
    log_format: LogFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.25)
    records: list[logging.LogRecord] = []
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        records.append(record := before(*args, **kwargs))
        return record

    logging.setLogRecordFactory(factory)
    try:
        without = _through_the_queue(log_format, _log_some)
        assert [record.getMessage() for record in records] == [
            "a record",
            "another record",
            "written at once",
        ]
        monkeypatch.setattr(_Batches, "_takes_events", lambda _: False)
        assert _through_the_queue(log_format, _log_some) == without
    finally:
        logging.setLogRecordFactory(before)
    assert len(records) == len(without) + 3
    assert len(without) == 5


def test_lines_become_records_as_soon_as_another_handler_listens() -> None:
    seen: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    def log_twice() -> None:
        logs.log_event(log, INFO, "first")
        logging.getLogger().addHandler(Listening())
        logs.log_event(log, INFO, "second")

    lines = _through_the_queue(LogFormat.TEXT, log_twice)
    assert [line.split()[-1] for line in lines] == seen == ["first", "second"]
