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
from tunnel_core.telemetry.logs import Event, QueueHandler
from tunnel_core.telemetry.queued_output import batched_writes

_HOLD_SECONDS = 0.05
"""Time for which a log line waits for others, because lines that are made together cost less."""
_MOST_LINES = 256
"""Lines that wait together at most."""


def start_log_batching() -> None:
    """Write the root logger's lines in batches, from now to the end of this ``trio.run``."""
    trio.lowlevel.spawn_system_task(_Batches(logging.getLogger()).write_batches)


class _Batches:
    """Hold the lines of ``log_event`` unformatted, and records from other code as they are.

    While all handlers of the root logger are ``QueueHandler``, the lines of ``log_event`` go to them without
    a record: a record costs more than its text.
    """

    def __init__(self, root: logging.Logger) -> None:
        self._root = root
        self._original_handlers = root.handlers[:]
        self._handlers = [_BatchingHandler(handler, self) for handler in self._original_handlers]
        self._queue_handlers = [
            handler for handler in self._original_handlers if isinstance(handler, QueueHandler)
        ]
        self._events: list[Event] = []
        self._thread = threading.get_ident()
        self._has_lines = trio.Event()
        root.handlers[:] = self._handlers
        logs.hold_event = self.hold

    def hold(self, event: Event) -> bool:
        """Hold a line for the next batch; return False if the caller must write it at once."""
        if event.level >= logging.WARNING or threading.get_ident() != self._thread:
            return False
        self._events.append(event)
        if len(self._events) >= _MOST_LINES:
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

    def pass_on_events(self) -> None:
        """Pass all held lines on to the handlers, so that they precede the next record."""
        events, self._events = self._events, []
        if not events:
            return
        if self._takes_events():
            self._flush()  # held records are older
            for event in events:
                for handler in self._queue_handlers:
                    handler.write_event(event)
        else:
            for event in events:
                event.handle()

    def _takes_events(self) -> bool:
        """Whether a record would reach only ``QueueHandler``, because no code has added another handler."""
        return len(self._queue_handlers) == len(self._handlers) > 0 and self._root.handlers == self._handlers

    def _flush(self) -> None:
        for handler in self._handlers:
            handler.flush()

    def write(self) -> None:
        """Write everything that is held."""
        with batched_writes():
            self.pass_on_events()
            self._flush()

    async def write_batches(self) -> None:
        """Write a batch whenever lines are held. Cancelled, write the rest and restore the handlers."""
        try:
            while True:
                await self._has_lines.wait()
                await trio.sleep(_HOLD_SECONDS)
                self._has_lines = trio.Event()
                self.write()
        finally:
            logs.hold_event = None
            self.write()
            self._root.handlers[:] = self._original_handlers


class _BatchingHandler(MemoryHandler):
    def __init__(self, handler: logging.Handler, batches: _Batches) -> None:
        super().__init__(_MOST_LINES, logging.WARNING, handler)
        self._batches = batches

    def shouldFlush(self, record: logging.LogRecord) -> bool:  # noqa: N802 - the library's name
        return super().shouldFlush(record) or not self._batches.is_writer_thread

    def emit(self, record: logging.LogRecord) -> None:
        self._batches.pass_on_events()
        super().emit(record)
        if self.buffer and self._batches.is_writer_thread:
            self._batches.note_lines()
