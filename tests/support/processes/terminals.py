"""A program in a terminal of its own, whose window a test can close."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

# Makes the pseudo-terminal on standard input the controlling one, which the kernel hangs up with SIGHUP.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    " os.execvp(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """The window: the output so far, and the program in it."""

    def __init__(self, window: int, process: subprocess.Popen[bytes]) -> None:
        self._window = window
        self.process = process
        self.shown = ""

    def wait_for(self, text: str, *, deadline_seconds: float = 60) -> str:
        """Return the whole output so far, as soon as ``text`` is in it."""
        end = time.monotonic() + deadline_seconds
        while text not in self.shown:
            ready, _, _ = select.select([self._window], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {text!r} in time after: {self.shown}"
            try:
                self.shown += os.read(self._window, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended without {text!r}: {self.shown}") from None
        return self.shown

    def close(self) -> None:
        """Close the window. The program gets SIGHUP, and EIO when it writes."""
        if self._window >= 0:
            os.close(self._window)
        self._window = -1


@contextmanager
def terminal(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Terminal]:
    """Run ``command`` in a terminal, and kill it at the end if it still runs."""
    window, inner = os.openpty()
    try:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            [sys.executable, "-c", _TAKE_TERMINAL, *command],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=dict(environment),
        )
    finally:
        os.close(inner)
    made = Terminal(window, process)
    try:
        yield made
    finally:
        made.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
