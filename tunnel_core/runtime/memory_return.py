"""Return freed memory to the kernel when the process is quiet after work.

malloc keeps the pages of freed packets, because the next packets of a transfer use them again. After a
transfer these pages are of no use: a server kept 24 MiB of them, an agent 49. ``malloc_trim`` returns them in
0.1 ms per MiB. Between two transfers of one spell of work it would only cause page faults, so it waits for a
quiet moment. A process that never is quiet returns memory once a minute. The start counts as work. Together
with freed memory the process unmaps code that it needed only for the work (``code_pages.py``).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import trio

from tunnel_core.runtime.code_pages import find_unmap

START_SECONDS = 2.0
"""Time after which a program has started. An agent attaches in less than one second."""
LOOK_SECONDS = 5.0
"""Time between two looks at the processor time of the process."""
LONGEST_SECONDS = 60.0
"""Time after which a process returns memory although it is not quiet."""
_WORK_SECONDS = 0.5
"""Processor time that can leave memory worth returning: that of 400 MiB."""
_QUIET_SHARE = 0.1
"""Share of one core. 2,000 idle agents take 0.035 of it."""

Trim: TypeAlias = Callable[[], None]


class TrimSchedule:
    """Decide when to return memory: once for each spell of work. No clock of its own.

    All times are seconds. ``used`` is the processor time of the process since its start.
    """

    def __init__(self, now: float, used: float) -> None:
        self._looked_at, self._used_then = now, used
        self._trimmed_at, self._used_at_trim = now, used

    def is_due(self, now: float, used: float) -> bool:
        """Return whether to return memory now. If so, the caller does it, and the next spell begins."""
        is_quiet = used - self._used_then <= _QUIET_SHARE * (now - self._looked_at)
        self._looked_at, self._used_then = now, used
        has_worked = used - self._used_at_trim >= _WORK_SECONDS
        if not has_worked or not (is_quiet or now - self._trimmed_at >= LONGEST_SECONDS):
            return False
        self._trimmed_at, self._used_at_trim = now, used
        return True


def find_trim(library: object | None = None) -> Trim | None:
    """Return a function that returns all freed pages; None where the C library has none, as musl."""
    malloc_trim = getattr(ctypes.CDLL(None) if library is None else library, "malloc_trim", None)
    if malloc_trim is None:
        return None
    malloc_trim.argtypes, malloc_trim.restype = [ctypes.c_size_t], ctypes.c_int
    return lambda: malloc_trim(0)


def find_returns() -> tuple[Trim, ...]:
    """Return the functions by which this system takes memory back."""
    return tuple(filter(None, (find_trim(), find_unmap())))


async def return_memory(
    returns: Sequence[Trim], cpu_seconds: Callable[[], float] = time.process_time
) -> None:
    """Call ``returns`` after the start and whenever it is due, until cancelled. None: return at once."""
    if not returns:
        return
    await trio.sleep(START_SECONDS)
    _call_all(returns)
    schedule = TrimSchedule(trio.current_time(), cpu_seconds())
    while True:
        await trio.sleep(LOOK_SECONDS)
        if schedule.is_due(trio.current_time(), cpu_seconds()):
            _call_all(returns)


def _call_all(returns: Sequence[Trim]) -> None:
    for give_back in returns:
        give_back()
