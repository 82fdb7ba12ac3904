"""Ends a demo whose own process was killed: waits for its end, then ends its programs and removes its folder.

Runs as a process of its own: ``python -m tunnel_client.demo_guard FOLDER``. Standard input is a pipe from
the demo, with one process id a line, and ``done`` when nothing is left to do. The pipe ends when the demo
does, however that ends.
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
_LOOK_SECONDS = 0.05


def main(folder: Path, lines: Iterable[str]) -> None:
    """Read ``lines`` to their end, then clean up unless the last one is ``done``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    told = [line.strip() for line in lines]
    if DONE in told:
        return
    end_groups([int(line) for line in told if line.isdecimal()])
    shutil.rmtree(folder, ignore_errors=True)


def end_groups(groups: list[int]) -> None:
    """End process groups by SIGTERM, and by SIGKILL if that does not suffice."""
    alive = [group for group in groups if _send(group, signal.SIGTERM)]
    end = time.monotonic() + _STOP_SECONDS
    while alive and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        alive = [group for group in alive if _send(group, 0)]
    for group in alive:
        _send(group, signal.SIGKILL)


def _send(group: int, number: int) -> bool:
    """Returns whether the group exists."""
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin)
