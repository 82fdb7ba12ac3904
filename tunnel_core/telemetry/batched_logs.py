"""Log lines are made in batches, a moment after what they tell.

To make, format and write a line takes a good part of what a new connection costs, more so when the code
for it is cold each time; and somebody waits for that connection. So what was said in ``_HOLD_SECONDS`` is
written together. A warning writes all that is held at once, and so does the end of the run. Time and
order of the lines stay what they were; a process that is killed loses the lines of its last moment.
"""

from __future__ import annotations

import logging
import threading
from logging.handlers import MemoryHandler

import trio

from tunnel_core.telemetry import logs
from tunnel_core.telemetry.logs import Line
from tunnel_core.telemetry.queued_output import together

_HOLD_SECONDS = 0.05
"""Time for which a log line waits for others, because lines that are made together cost less."""
_MOST_LINES = 256
"""Lines that wait together at most."""


def start_log_batching() -> None:
    """From now to the end of this ``trio.run`` the root logger's lines are written in batches."""
    trio.lowlevel.spawn_system_task(_Batches(logging.getLogger()).write_now_and_then)


class _Batches:
    """Holds what ``log_event`` says as it was said, and the records of others as they are."""

    def __init__(self, root: logging.Logger) -> None:
        self._root = root
        self._before = root.handlers[:]
        self._held = [_HeldRecords(handler, self) for handler in self._before]
        self._lines: list[Line] = []
        self._thread = threading.get_ident()
        self._some = trio.Event()
        root.handlers[:] = self._held
        logs.keeper = self.keep

    def keep(self, line: Line) -> bool:
        """Takes a line, unless it is one that waits for nothing."""
        if line.level >= logging.WARNING or not self.is_here:
            return False
        self._lines.append(line)
        if len(self._lines) >= _MOST_LINES:
            self.write()
        self.note_some()
        return True

    @property
    def is_here(self) -> bool:
        """Whether this is the thread that writes; the lines of others, which are rare, wait for nothing."""
        return threading.get_ident() == self._thread

    def note_some(self) -> None:
        if not self._some.is_set():
            self._some.set()

    def make_records(self) -> None:
        """All lines become records, in front of whatever comes next."""
        lines, self._lines = self._lines, []
        for line in lines:
            line.write()

    def write(self) -> None:
        with together():
            self.make_records()
            for held in self._held:
                held.flush()

    async def write_now_and_then(self) -> None:
        try:
            while True:
                await self._some.wait()
                await trio.sleep(_HOLD_SECONDS)
                self._some = trio.Event()
                self.write()
        finally:
            logs.keeper = None
            self.write()
            self._root.handlers[:] = self._before


class _HeldRecords(MemoryHandler):
    def __init__(self, handler: logging.Handler, batches: _Batches) -> None:
        super().__init__(_MOST_LINES, logging.WARNING, handler)
        self._batches = batches

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802 - the library's name
        return super().shouldFlush(record) or not self._batches.is_here

    def emit(self, record: logging.LogRecord) -> None:
        self._batches.make_records()
        super().emit(record)
        if self.buffer and self._batches.is_here:
            self._batches.note_some()
