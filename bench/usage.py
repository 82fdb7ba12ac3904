"""Memory and processor time of processes, read from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

MIB = 1 << 20
_TICKS = os.sysconf("SC_CLK_TCK")


def resident_bytes(pids: Sequence[int]) -> int:
    """Return the RSS of these processes together, as `ps` shows it."""
    return sum(_status(pid, "VmRSS") for pid in pids)


def private_bytes(pids: Sequence[int]) -> int:
    """Return the resident memory of these processes without pages of files: what a growth is measured by.

    The programs unmap code that they do not use, and map it again when they do.
    """
    return sum(_status(pid, "RssAnon") for pid in pids)


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    raise LookupError(f"/proc/{pid}/status has no {field}")


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the user and system time of these processes."""
    return sum(_cpu_ticks(pid) for pid in pids) / _TICKS


def _cpu_ticks(pid: int) -> int:
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[11]) + int(after_name[12])


def cpu_percent(pids: Sequence[int], seconds: float) -> float:
    """Return the share of one core that these processes use over the next `seconds`. Blocks."""
    before, started = cpu_seconds(pids), time.monotonic()
    time.sleep(seconds)
    return 100 * (cpu_seconds(pids) - before) / (time.monotonic() - started)


def wait_quiet(pids: Sequence[int], seconds: float = 15.0) -> None:
    """Wait until these processes use less than a fifth of a core together, or `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while cpu_percent(pids, 0.2) > 20 and time.monotonic() < deadline:
        continue


def settled_bytes(pids: Sequence[int], seconds: float = 5.0) -> int:
    """Return `private_bytes` once it changes by less than 256 KiB in half a second, or after `seconds`."""
    deadline = time.monotonic() + seconds
    last = private_bytes(pids)
    while time.monotonic() < deadline:
        time.sleep(0.5)
        now = private_bytes(pids)
        if abs(now - last) < 256 * 1024:
            return now
        last = now
    return last


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children and so on."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [process for child in map(int, children) for process in (child, *descendants(child))]
