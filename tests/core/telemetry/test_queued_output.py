"""The queue in front of standard error: its reader may stop, end, or continue."""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tunnel_core.telemetry.queued_output import MAX_BYTES, MAX_LINES, QueuedOutput

PIPE_BYTES = 4096
SECONDS = 10.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The reading and the writing end of a pipe that holds one page."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue  # a test closed it


def read_lines(reading: int, until: str) -> list[str]:
    """The lines of the pipe up to the first that has ``until`` in it."""
    text = b""
    while until.encode() not in text or not text.endswith(b"\n"):
        chunk = os.read(reading, 65536)
        assert chunk, text[-500:]
        text += chunk
    return text.decode().splitlines()


def lost_in(lines: list[str]) -> int:
    return sum(int(line.split()[0]) for line in lines if "lines of the log were lost" in line)


def test_lines_come_out_in_their_order(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    output = QueuedOutput(writing)
    for number in range(1000):
        output.write(f"line {number}\n")
    lines = read_lines(reading, "line 999")
    assert lines == [f"line {number}" for number in range(1000)]
    assert output.drain(SECONDS)
    assert output.lines_dropped == 0


def test_parts_of_a_line_are_put_together(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    output = QueuedOutput(writing)
    print("a", "b", 3, file=output)
    output.write("no newline \udcff")
    assert output.drain(SECONDS)
    assert os.read(reading, 100) == b"a b 3\nno newline \\udcff\n"


@pytest.mark.parametrize("size", [10, 1000])
def test_a_stopped_reader_costs_lines_and_no_time(pipe: tuple[int, int], size: int) -> None:
    reading, writing = pipe
    output = QueuedOutput(writing)
    count = MAX_LINES + 5000
    for number in range(count):  # would never come to its end if a write waited
        output.write(f"{number} ".ljust(size, "x") + "\n")
    assert output.lines_dropped > 0
    assert not output.drain(0.01)
    lines = read_lines(reading, "were lost")
    kept = [int(line.split()[0]) for line in lines if line.endswith("x")]
    assert kept == list(range(len(kept))), "the oldest are kept, in their order"
    assert len(kept) <= MAX_LINES + 1000
    assert len(kept) * size <= MAX_BYTES + 100_000
    assert lost_in(lines) == output.lines_dropped == count - len(kept)
    assert lines[-1].endswith("its reader did not read")


def test_the_loss_stands_where_the_lines_would_have_stood(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    output = QueuedOutput(writing)
    while not output.lines_dropped:
        output.write("before\n")
    assert lost_in(read_lines(reading, "were lost")) == 1
    output.write("after\n")
    assert output.drain(SECONDS)
    assert os.read(reading, 100) == b"after\n"


def test_a_reader_that_ended_raises_nothing_and_is_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    output = QueuedOutput(writing)
    os.close(reading)
    for _ in range(3):
        output.write("lost\n")
        assert output.drain(SECONDS)
    assert output.lines_dropped == 3


def test_a_full_disk_is_logged_when_there_is_room_again(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        place = os.dup(full)
        output = QueuedOutput(place)
        for _ in range(5):
            output.write("lost\n")
            assert output.drain(SECONDS)
        os.dup2(writing, place)
        output.write("there is room\n")
        assert output.drain(SECONDS)
        written = os.read(reading, 1000).decode().splitlines()
        assert written == ["5 lines of the log were lost: No space left on device", "there is room"]
        assert output.lines_dropped == 5
    finally:
        os.close(full)
        os.close(place)


def test_a_line_that_was_cut_short_is_ended_first(tmp_path: object) -> None:
    """A limit on the file's size cuts a line in its middle, as a full disk does."""
    program = (
        "import os, resource, signal, sys\n"
        "from tunnel_core.telemetry.queued_output import QueuedOutput\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "output = QueuedOutput(file)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (15, resource.RLIM_INFINITY))\n"
        "output.write('0123456789\\nabcdefghij\\n'.splitlines(True)[0]); output.drain(9)\n"
        "output.write('abcdefghij\\n'); output.drain(9)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "output.write('whole again\\n'); output.drain(9)\n"
    )
    file = f"{tmp_path}/log"
    subprocess.run([sys.executable, "-c", program, file], check=True, timeout=30)  # noqa: S603
    with open(file) as opened:  # noqa: PTH123
        assert opened.read().splitlines() == [
            "0123456789",
            "abcd",
            "1 lines of the log were lost: File too large",
            "whole again",
        ]


def test_a_non_blocking_output_is_waited_for(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    output = QueuedOutput(writing)
    for number in range(2000):
        output.write(f"line {number}\n")
    assert read_lines(reading, "line 1999") == [f"line {number}" for number in range(2000)]
    assert not os.get_blocking(writing), "others who share it are not disturbed"


def test_lines_written_together_are_one_item(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    output = QueuedOutput(writing)
    with output.batched_writes(), output.batched_writes():
        output.write("one\n")
        assert output.drain(SECONDS)
        assert not select.select([reading], [], [], 0)[0]
        output.write("two\n")
    assert output.drain(SECONDS)
    assert os.read(reading, 100) == b"one\ntwo\n"


# A whole process.


def run(program: str, *, reads: bool) -> tuple[int, float, list[str]]:
    """Return exit code, seconds, and the lines of standard error if they are read."""
    head = (
        "import logging, sys, warnings\n"
        "from tunnel_core.telemetry import logs\n"
        "from tunnel_core.telemetry.queued_output import queue_standard_error\n"
        "from tunnel_core.config.types import LogFormat, LogLevel\n"
        "queue_standard_error()\n"
        "logs.setup(LogLevel.INFO, LogFormat.JSON)\n"
        "log = logging.getLogger('qanat.test')\n"
    )
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", head + program], stderr=subprocess.PIPE)  # noqa: S603
    assert process.stderr is not None
    with process.stderr:
        lines = process.stderr.read().decode().splitlines() if reads else []
        code = process.wait(SECONDS)
    return code, time.monotonic() - began, lines


def test_the_last_lines_of_a_crash_come_out_in_order() -> None:
    program = (
        "log.info('a line')\n"
        "warnings.warn('a warning')\n"
        "logging.getLogger('library').error('of a library')\n"
        "class Bad:\n"
        "    def __del__(self): raise ValueError('in a finalizer')\n"
        "Bad()\n"
        "raise SystemError('the crash')\n"
    )
    code, _, lines = run(program, reads=True)
    assert code == 1
    text = "\n".join(lines)
    order = ["a line", "a warning", "of a library", "in a finalizer", "the crash"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_a_stopped_reader_cannot_hold_a_process_that_ends() -> None:
    code, seconds, _ = run("for _ in range(2000): log.info('x' * 100)\nsys.exit(7)\n", reads=False)
    assert code == 7
    assert seconds < 5


def test_the_loss_is_a_line_of_the_log() -> None:
    code, _, lines = run("for _ in range(20000): log.info('x' * 100)\n", reads=True)
    assert code == 0
    parsed = [json.loads(line) for line in lines]
    losses = [line for line in parsed if "lines_dropped" in line]
    for loss in losses:
        assert (loss["level"], loss["logger"]) == ("warning", "qanat.log")
        assert loss["message"].startswith(f"{loss['lines_dropped']} lines of the log were lost")
    assert len(parsed) - len(losses) + sum(loss["lines_dropped"] for loss in losses) == 20000
