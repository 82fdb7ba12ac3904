from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
import trio

from tunnel_core import logs
from tunnel_core.log_idle import LinesWhenIdle
from tunnel_core.settings import LogFormat, LogLevel

log = logging.getLogger("qanat.test")


@pytest.fixture(autouse=True)
def no_other_handlers() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def run(*steps: object) -> list[str]:
    """What had been written after each step: a sentence is logged, ``idle`` lets the loop sleep."""
    output = io.StringIO()
    logs.setup(LogLevel.INFO, LogFormat.TEXT, output)
    seen: list[str] = []

    async def main() -> None:
        for step in steps:
            if step == "idle":
                await trio.sleep(0.001)
            elif step == "pass":
                await trio.lowlevel.cancel_shielded_checkpoint()
            elif isinstance(step, tuple):
                log.log(*step)
            seen.append(" ".join(line.split()[-1] for line in output.getvalue().splitlines()))

    trio.run(main, instruments=[LinesWhenIdle()])
    seen.append(" ".join(line.split()[-1] for line in output.getvalue().splitlines()))
    return seen


INFO, WARNING = logging.INFO, logging.WARNING


def test_lines_wait_until_the_loop_sleeps_and_keep_their_order() -> None:
    assert run((INFO, "one"), "pass", (INFO, "two"), "idle") == ["", "", "", "one two", "one two"]


def test_a_warning_waits_for_nothing() -> None:
    assert run((INFO, "one"), (WARNING, "two")) == ["", "one two", "one two"]


def test_what_is_held_back_is_bounded() -> None:
    written = run(*[(INFO, str(number)) for number in range(300)])
    assert written[254] == ""
    assert len(written[256].split()) == 256


def test_the_end_leaves_nothing_behind_and_the_handler_as_it_was() -> None:
    assert run((INFO, "one")) == ["", "one"]
    assert not any(isinstance(h, logging.handlers.MemoryHandler) for h in logging.getLogger().handlers)


def test_a_crash_writes_its_lines_first() -> None:
    output = io.StringIO()
    logs.setup(LogLevel.INFO, LogFormat.TEXT, output)

    async def main() -> None:
        log.info("before")
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        trio.run(main, instruments=[LinesWhenIdle()])
    assert "before" in output.getvalue()
