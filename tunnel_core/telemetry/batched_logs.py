"""Format and write log lines in batches, shortly after the events.

To format and write a line takes a good part of the time of a new connection, for which a user waits; it takes
more while the code is cold. So the lines of ``_HOLD_SECONDS`` are written together. A warning writes all held
lines at once, and so does the end of the run. The lines keep their times and their order. A process that is
killed loses the lines of its last ``_HOLD_SECONDS``.
"""

from __future__ import annotations

import logging
import threading
from logging.handlers import MemoryHandler

import trio

from tunnel_core.telemetry import logs
from tunnel_core.telemetry.logs import Line
from tunnel_core.telemetry.queued_output import batched_writes

_HOLD_SECONDS = 0.05
"""Time for which a log line waits for others, because lines that are made together cost less."""
_MOST_LINES = 256
"""Lines that wait together at most."""


def start_log_batching() -> None:
    """Write the root logger's lines in batches, from now to the end of this ``trio.run``."""
    trio.lowlevel.spawn_system_task(_Batches(logging.getLogger()).write_batches)


class _Batches:
    """Hold the lines of ``log_event`` unformatted, and records from other code as they are."""

    def __init__(self, root: logging.Logger) -> None:
        self._root = root
        self._original_handlers = root.handlers[:]
        self._handlers = [_BatchingHandler(handler, self) for handler in self._original_handlers]
        self._lines: list[Line] = []
        self._thread = threading.get_ident()
        self._has_lines = trio.Event()
        root.handlers[:] = self._handlers
        logs.hold_line = self.hold

    def hold(self, line: Line) -> bool:
        """Hold ``line`` for the next batch; return False if the caller must write it at once."""
        if line.level >= logging.WARNING or threading.get_ident() != self._thread:
            return False
        self._lines.append(line)
        if len(self._lines) >= _MOST_LINES:
            self.write()
        if not self._has_lines.is_set():
            self._has_lines.set()
        return True

    @property
    def is_writer_thread(self) -> bool:
        """Whether this is the thread of ``trio.run``. Other threads rarely log; their lines are not held."""
        return threading.get_ident() == self._thread

    def note_lines(self) -> None:
        """Start the time of a batch, unless it runs already."""
        if not self._has_lines.is_set():
            self._has_lines.set()

    def make_records(self) -> None:
        """Turn all held lines into records, so that they precede the next record."""
        lines, self._lines = self._lines, []
        for line in lines:
            line.write()

    def write(self) -> None:
        """Write everything that is held."""
        with batched_writes():
            self.make_records()
            for handler in self._handlers:
                handler.flush()

    async def write_batches(self) -> None:
        """Write a batch whenever lines are held. Cancelled, write the rest and restore the handlers."""
        try:
            while True:
                await self._has_lines.wait()
                await trio.sleep(_HOLD_SECONDS)
                self._has_lines = trio.Event()
                self.write()
        finally:
            logs.hold_line = None
            self.write()
            self._root.handlers[:] = self._original_handlers


class _BatchingHandler(MemoryHandler):
    def __init__(self, handler: logging.Handler, batches: _Batches) -> None:
        super().__init__(_MOST_LINES, logging.WARNING, handler)
        self._batches = batches

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802 - the library's name
        return super().shouldFlush(record) or not self._batches.is_writer_thread

    def emit(self, record: logging.LogRecord) -> None:
        self._batches.make_records()
        super().emit(record)
        if self.buffer and self._batches.is_writer_thread:
            self._batches.note_lines()
