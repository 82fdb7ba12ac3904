"""Run suites of tests as processes: some alone, the others two at a time. Each output is shown as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

NOTHING_CHOSEN = 5
"""pytest's exit code if its options choose no test of a suite."""
_AT_A_TIME = 2
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Suite:
    """A folder of tests, and what may run beside it. Without more it runs alone."""

    name: str
    alone: bool = True
    shares: str = ""
    """What it uses that exists once. Suites with the same word do not run beside each other."""
    niced: bool = False
    """Whether it only computes, so that it runs with a lower priority than the suite beside it."""


def choose(waiting: Sequence[Suite], running: Sequence[Suite]) -> Suite | None:
    """Return the first waiting suite that may start beside the running ones."""
    if len(running) >= _AT_A_TIME or any(one.alone for one in running):
        return None
    used = {one.shares for one in running if one.shares}
    return next((one for one in waiting if not (one.alone and running) and one.shares not in used), None)


@dataclass
class _Run:
    suite: Suite
    output: IO[bytes]
    process: subprocess.Popen[bytes]
    began: float
    seconds: float = 0.0

    def has_ended(self) -> bool:
        if self.process.poll() is None:
            return False
        self.seconds = time.monotonic() - self.began
        return True

    def show(self) -> None:
        """Write the output as a whole. A suite that was interrupted shows how far it came."""
        self.output.seek(0)
        sys.stdout.write(f"\n=== {self.suite.name}\n")
        sys.stdout.write(self.output.read().decode(errors="replace"))
        sys.stdout.flush()
        self.output.close()


def run_all(suites: Sequence[Suite], command: Callable[[Suite], list[str]], *, is_narrowed: bool) -> int:
    """Run all suites, show their outputs and a summary, and return 1 if one failed, otherwise 0.

    ``command`` returns the command line of a suite. ``is_narrowed`` means that options chose some of the
    tests, so that a suite may have none. A KeyboardInterrupt ends the running suites by SIGTERM.
    """
    waiting, running, ended = list(suites), list[_Run](), list[_Run]()
    try:
        while waiting or running:
            while suite := choose(waiting, [one.suite for one in running]):
                waiting.remove(suite)
                running.append(_start(suite, command(suite)))
                sys.stdout.write(f"=== {suite.name}: started\n")
                sys.stdout.flush()
            for one in [one for one in running if one.has_ended()]:
                running.remove(one)
                ended.append(one)
                one.show()
            time.sleep(_LOOK_SECONDS)
    finally:
        _end(running)
    passing = (0, NOTHING_CHOSEN) if is_narrowed else (0,)
    for one in ended:
        word = (
            "passed" if one.process.returncode in passing else f"FAILED, exit code {one.process.returncode}"
        )
        sys.stdout.write(f"=== {one.suite.name}: {word} after {one.seconds:.0f} s\n")
    return int(any(one.process.returncode not in passing for one in ended))


def _start(suite: Suite, argv: Sequence[str]) -> _Run:
    output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the suite
    # In a session of its own, so that Ctrl-C reaches it once: as the SIGTERM of _end.
    process = subprocess.Popen(  # noqa: S603 - our own command
        ["nice", *argv] if suite.niced else argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return _Run(suite, output, process, time.monotonic())


def _end(running: Sequence[_Run]) -> None:
    for one in running:
        one.process.terminate()
    for one in running:
        one.process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)  # programs that it left
        one.show()
