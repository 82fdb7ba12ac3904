"""Log lines are made in batches, a moment after what they tell.

To format and write a line takes a good part of what a new connection costs, more so when the code for
it is cold each time; and somebody waits for that connection. So the records of ``_HOLD_SECONDS`` are
written together. A warning writes all that is held at once, and so does the end of the run. Time and
order of the lines stay what they were; a process that is killed loses the lines of its last moment.
"""

from __future__ import annotations

import logging
import threading
from logging.handlers import MemoryHandler

import trio

_HOLD_SECONDS = 0.05
_MOST_RECORDS = 256
"""So many are written however young they are."""


def hold_lines() -> None:
    """From now to the end of this ``trio.run`` the root logger's lines are written in batches."""
    root = logging.getLogger()
    held = [_HeldLines(handler) for handler in root.handlers]
    root.handlers[:] = held
    for lines in held:
        trio.lowlevel.spawn_system_task(lines.write_now_and_then)


class _HeldLines(MemoryHandler):
    def __init__(self, handler: logging.Handler) -> None:
        super().__init__(_MOST_RECORDS, logging.WARNING, handler)
        self._handler = handler
        self._thread = threading.get_ident()
        self._some = trio.Event()

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802 - the library's name
        # The event belongs to this thread, so the lines of others, which are rare, wait for nothing.
        return super().shouldFlush(record) or threading.get_ident() != self._thread

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if self.buffer and not self._some.is_set():
            self._some.set()

    async def write_now_and_then(self) -> None:
        try:
            while True:
                await self._some.wait()
                await trio.sleep(_HOLD_SECONDS)
                self._some = trio.Event()
                self.flush()
        finally:
            self.flush()
            root = logging.getLogger()
            root.handlers[:] = [self._handler if each is self else each for each in root.handlers]
