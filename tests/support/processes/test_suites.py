"""Which suites run beside each other, and what is shown of them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes.suites import NOTHING_CHOSEN, Suite, choose, run_all

ALONE, OTHER_ALONE = Suite("attacks"), Suite("resilience")
FIRST, SECOND = (Suite(name, alone=False, shares="bed") for name in ("identity", "network"))
FREE, LAST = Suite("containers", alone=False), Suite("fuzz", alone=False, niced=True)
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("waiting", "running", "chosen"),
    [
        ([ALONE, FREE], [], ALONE),
        ([ALONE, FREE], [LAST], FREE),
        ([OTHER_ALONE], [LAST], None),
        ([FREE], [ALONE], None),
        ([FREE], [FIRST], FREE),
        ([SECOND, FREE], [FIRST], FREE),
        ([SECOND], [FIRST], None),
        ([SECOND], [FREE], SECOND),
        ([FREE], [FIRST, LAST], None),
        ([], [FIRST], None),
    ],
)
def test_who_may_start(waiting: list[Suite], running: list[Suite], chosen: Suite | None) -> None:
    assert choose(waiting, running) == chosen


def command(suite: Suite) -> list[str]:
    code = {"attacks": 0, "identity": 3, "fuzz": NOTHING_CHOSEN}[suite.name]
    return [sys.executable, "-c", f"print('output of {suite.name}'); raise SystemExit({code})"]


def test_a_failed_suite_fails_the_run_and_each_output_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all([ALONE, FIRST, LAST], command, is_narrowed=True) == 1
    shown = capsys.readouterr().out
    for name in ("attacks", "identity", "fuzz"):
        assert f"=== {name}\noutput of {name}\n" in shown
    assert "=== attacks: passed after" in shown
    assert "=== identity: FAILED, exit code 3 after" in shown
    assert "=== fuzz: passed after" in shown


@pytest.mark.parametrize(("is_narrowed", "code"), [(True, 0), (False, 1)])
def test_a_suite_may_lack_tests_only_if_options_choose_some(is_narrowed: bool, code: int) -> None:
    assert run_all([ALONE, LAST], command, is_narrowed=is_narrowed) == code


def test_an_interrupt_ends_the_suites_that_run_and_the_programs_that_they_leave() -> None:
    script = textwrap.dedent("""
        import sys
        from tests.support.processes.suites import Suite, run_all
        leaves = "import subprocess, signal; subprocess.Popen(['sleep', '60']); signal.pause()"
        run_all([Suite("slow")], lambda suite: [sys.executable, "-c", leaves], is_narrowed=False)
    """)
    with subprocess.Popen(  # noqa: S603 - ours
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "=== slow: started\n"
        suite = children(runner.pid)[0]
        while not (left := children(suite)):
            time.sleep(0.01)
        runner.send_signal(signal.SIGINT)
        shown, _ = runner.communicate(timeout=20)
        assert runner.returncode == -signal.SIGINT
        assert shown.startswith("\n=== slow\n")
        with open_process(left[0]) as ended:
            assert select.select([ended], [], [], 20)[0]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def open_process(pid: int) -> Iterator[int]:
    """Yield a descriptor that is readable once the process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        descriptor = os.open(os.devnull, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
