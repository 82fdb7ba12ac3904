"""The ends of a command that runs until it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import trio
import trio.testing

from tunnel_core.runtime.ending import exit_code_of, is_hung_up, wait_hung_up, wait_writable

ROOT = Path(__file__).parents[3]


def test_signals_that_the_caller_ignores_stay_ignored() -> None:
    """``nohup`` and a shell's ``&`` make the caller ignore signals."""
    code = "from tunnel_core.runtime.ending import ending_signals; print(*(int(n) for n in ending_signals()))"
    ignore = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        " os.execv(sys.argv[1], sys.argv[1:])"
    )
    for before, expected in (([], "2 15 1"), ([sys.executable, "-c", ignore], "2 15")):
        command = [*before, sys.executable, "-c", code]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
        assert ran.stdout.strip() == expected


def test_ctrl_c_is_no_failure() -> None:
    assert [exit_code_of(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == [
        0,
        143,
        129,
    ]


def test_a_pipe_is_hung_up_when_its_reader_goes(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    assert not is_hung_up(writing)
    os.close(reading)
    assert is_hung_up(writing)
    os.close(writing)
    assert not is_hung_up(writing)  # the state is unknown


def test_a_terminal_is_hung_up_when_its_window_goes() -> None:
    window, inner = os.openpty()
    assert not is_hung_up(inner)
    os.close(window)
    assert is_hung_up(inner)
    os.close(inner)


def test_a_file_is_never_hung_up(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        assert not is_hung_up(log.fileno())


async def test_waiting_ends_when_the_reader_goes(autojump_clock: trio.testing.MockClock) -> None:
    reading, writing = os.pipe()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_hung_up, writing)
            await trio.sleep(10)
            assert nursery.child_tasks
            os.close(reading)
    finally:
        os.close(writing)


async def test_a_wait_for_a_stopped_reader_can_be_cancelled() -> None:
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        await wait_writable(writing)
        os.write(writing, bytes(1 << 20))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_writable, writing)
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            os.read(reading, 1 << 20)  # the reader continues: the wait ends by itself
        os.write(writing, bytes(1 << 20))
        with trio.move_on_after(0) as scope:
            await wait_writable(writing)
        assert scope.cancelled_caught
    finally:
        os.close(reading)
        os.close(writing)


async def test_a_file_is_not_waited_for(tmp_path: Path) -> None:
    with (tmp_path / "list").open("wb") as file:
        await wait_writable(file.fileno())
