"""Cleanup of a demo whose process was killed: end its programs and remove its folder.

The guard is a separate process: ``python -m tunnel_client.demo_guard FOLDER``. Its standard input is a pipe
from the demo with one process id a line, and with ``done`` if the demo has cleaned up itself. The pipe ends
when the demo ends for any cause.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

DONE = "done"
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05


def main(folder: Path, lines: Iterable[str]) -> None:
    """Read ``lines`` to their end, then clean up unless one of them is ``done``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    received = [line.strip() for line in lines]
    if DONE in received:
        return
    end_groups([int(line) for line in received if line.isdecimal()])
    shutil.rmtree(folder, ignore_errors=True)


def end_groups(groups: list[int]) -> None:
    """End process groups with SIGTERM, and those that are alive after 10 s with SIGKILL."""
    alive = [group for group in groups if _send(group, signal.SIGTERM)]
    end = time.monotonic() + _STOP_SECONDS
    while alive and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
        alive = [group for group in alive if _send(group, 0)]
    for group in alive:
        _send(group, signal.SIGKILL)


def _send(group: int, number: int) -> bool:
    """Send a signal to a process group. Return whether the group exists."""
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin)
