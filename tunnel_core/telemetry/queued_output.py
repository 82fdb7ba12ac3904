"""Write standard error in a thread of its own, so that a stopped log reader blocks no stream.

1. A write to a pipe, a terminal or a slow disk blocks while its reader does not read. In the event loop
   this would stop every stream, so :class:`QueuedOutput` replaces ``sys.stderr``. Log lines, warnings,
   tracebacks and the last sentence of a command all pass through one queue, in their order.
2. The queue is bounded in lines and bytes. Lines that do not fit are dropped and counted. One line reports
   their number in the place of the lost lines.
3. An error of the output (reader gone, disk full, descriptor closed) loses the lines of that write and is
   never raised. Every later write tries again. If a line was cut, the next write begins with a newline.
4. At exit the queue has ``_EXIT_SECONDS`` to empty. The thread is a daemon, so a stopped reader cannot keep
   the process from ending.

Standard output is not queued, because a command that prints its answer has no other work meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeAlias

MAX_LINES = 10_000
"""Log lines that wait for their reader. A stopped reader must not stop the event loop."""
MAX_BYTES = 1024 * 1024
"""Bytes of those lines."""
_WRITE_BYTES = 64 * 1024
"""Size of one joined write: the capacity of a Linux pipe."""
_EXIT_SECONDS = 1.0
"""Time for the queued lines at the end of the process."""
_BUSY_SECONDS = 0.01
"""Pause between two writes to a non-blocking output, in case poll reports it ready and it is not."""
_NO_READER = "its reader did not read"


class _Loss(NamedTuple):
    """Number of lost lines and the cause; takes the place of the lines in the queue."""

    lines: int
    cause: str


class _Line(NamedTuple):
    """One line as bytes. A notice of lost lines has their ``loss``; other lines have None."""

    data: bytes
    loss: _Loss | None = None


_Item: TypeAlias = _Line | _Loss | list["_Line | _Loss"] | threading.Event
"""Item of the queue. An event is set when everything before it is written."""


def _plain_notice(lines: int, cause: str) -> str:
    return f"{lines} lines of the log were lost: {cause}\n"


class QueuedOutput(io.TextIOBase):
    """Text stream over ``descriptor`` whose writes never block and never raise ``OSError``.

    Any thread may write, and so may a signal handler. A write that ends with a newline counts as one line,
    even if it holds more newlines, and is written or dropped as a whole.
    """

    def __init__(self, descriptor: int, *, encoding: str = "utf-8") -> None:
        self.notice: Callable[[int, str], str] = _plain_notice
        """Makes the line that reports how many lines were lost, and why."""
        self._descriptor = descriptor
        self._encoding = encoding
        self._is_terminal = os.isatty(descriptor)
        self._queue: SimpleQueue[_Item] = SimpleQueue()  # a signal handler may re-enter its put
        self._lock = threading.RLock()  # never held during a write to the descriptor
        self._pending = ""
        self._batch: list[_Line | _Loss] | None = None
        self._unreported = 0  # dropped lines that no queued notice counts yet
        self._dropped = 0
        self._put, self._taken = _Amount(), _Amount()
        self._out = _Output(descriptor, self._notice_of)
        threading.Thread(target=self._work, name="log-writer", daemon=True).start()

    # Methods of a text stream.

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def isatty(self) -> bool:
        return self._is_terminal

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Queue a text; a text without a newline waits for the rest of its line."""
        with self._lock:
            whole = self._pending + text
            is_complete = whole.endswith("\n") or len(whole) > _WRITE_BYTES
            self._pending = "" if is_complete else whole
            if is_complete:
                self._enqueue(self._encode(whole))
        return len(text)

    def write_line(self, line: str) -> None:
        """Write a line and a newline."""
        with self._lock:
            if self._pending:
                self.write("\n")
            self._enqueue(self._encode(line + "\n"))

    def flush(self) -> None:
        """Do nothing, because the thread writes as soon as it can. To wait for it, call :meth:`drain`."""

    # Methods beyond a text stream.

    @contextlib.contextmanager
    def batched_writes(self) -> Iterator[None]:
        """Wake the thread once, at the end of the block, for all lines that the block writes.

        To wake the thread costs as much as to format a line. Use it from one thread; a nested block adds
        nothing.
        """
        if self._batch is not None:
            yield
            return
        self._batch = []
        try:
            yield
        finally:
            with self._lock:
                batch, self._batch = self._batch, None
                if batch:
                    self._queue.put(batch)

    @property
    def lines_dropped(self) -> int:
        """Number of lines lost since the start, because the queue was full or the output failed."""
        return self._dropped + self._out.lines_failed

    def drain(self, seconds: float) -> bool:
        """Wait at most ``seconds`` until all earlier lines are written. Return whether they are."""
        reached = threading.Event()
        with self._lock:
            if self._pending:
                self.write("\n")
            self._report_dropped()
            self._queue.put(reached)
        return reached.wait(seconds)

    def _encode(self, text: str) -> bytes:
        return text.encode(self._encoding, "backslashreplace")

    def _enqueue(self, data: bytes) -> None:
        lines = self._put.lines - self._taken.lines
        size = self._put.bytes - self._taken.bytes
        if lines >= MAX_LINES or (lines and size + len(data) > MAX_BYTES):
            self._unreported += 1
            self._dropped += 1
            return
        self._report_dropped()
        self._put.lines += 1
        self._put.bytes += len(data)
        self._append(_Line(data))

    def _append(self, item: _Line | _Loss) -> None:
        if self._batch is None:
            self._queue.put(item)
        else:
            self._batch.append(item)

    def _report_dropped(self) -> None:
        dropped, self._unreported = self._unreported, 0
        if dropped:
            self._append(_Loss(dropped, _NO_READER))

    # The thread.

    def _work(self) -> None:
        while True:
            lines, reached = self._collect()
            self._out.write(lines)
            own = [line for line in lines if line.loss is None]
            self._taken.lines += len(own)
            self._taken.bytes += sum(len(line.data) for line in own)
            if reached is not None:
                reached.set()
            if self._unreported:
                with self._lock:
                    self._report_dropped()

    def _collect(self) -> tuple[list[_Line], threading.Event | None]:
        """Wait for an item; return it and the items behind it that fit into one write."""
        lines: list[_Line] = []
        size = 0
        item: _Item | None = self._queue.get()
        while item is not None and not isinstance(item, threading.Event):
            for line in item if isinstance(item, list) else (item,):
                lines.append(self._notice_of(line) if isinstance(line, _Loss) else line)
                size += len(lines[-1].data)
            item = self._next() if size < _WRITE_BYTES else None
        return lines, item

    def _next(self) -> _Item | None:
        try:
            return self._queue.get_nowait()
        except Empty:
            return None

    def _notice_of(self, loss: _Loss) -> _Line:
        return _Line(self._encode(self.notice(*loss)), loss)


class _Output:
    """Write lines to a descriptor, for the thread only, and count the lines that it could not write."""

    def __init__(self, descriptor: int, notice_of: Callable[[_Loss], _Line]) -> None:
        self.lines_failed = 0
        self._descriptor = descriptor
        self._notice_of = notice_of
        self._unreported = 0
        self._cause = ""
        self._is_cut = False  # the output ends within a line

    def write(self, lines: list[_Line]) -> None:
        """Write all ``lines``, however long it takes; after an error, count the lost lines."""
        if not lines:
            return
        if self._unreported:
            lines = [self._notice_of(_Loss(self._unreported, self._cause)), *lines]
            self._unreported = 0
        newline = b"\n" if self._is_cut else b""
        data = newline + b"".join(line.data for line in lines)
        written, error = _write_all(self._descriptor, data)
        if written:
            self._is_cut = data[written - 1 : written] != b"\n"
        if error is not None:
            self._count_lost(lines, written - len(newline), error)

    def _count_lost(self, lines: list[_Line], written: int, error: OSError) -> None:
        self._cause = error.strerror or type(error).__name__
        end = 0
        for line in lines:
            end += len(line.data)
            if end > written:
                self.lines_failed += line.loss is None
                self._unreported += line.loss.lines if line.loss else 1


def _write_all(descriptor: int, data: bytes) -> tuple[int, OSError | None]:
    """Return the number of bytes written, and the error that stopped the write; None if all are written."""
    written = 0
    view = memoryview(data)
    while written < len(data):
        try:
            written += os.write(descriptor, view[written:])
        except BlockingIOError:
            _wait_writable(descriptor)
        except OSError as error:
            return written, error
    return written, None


def _wait_writable(descriptor: int) -> None:
    """Wait until a non-blocking output is writable.

    Another program that shares the output may have made it non-blocking, so its mode is not changed.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()
    time.sleep(_BUSY_SECONDS)


@dataclass(slots=True)
class _Amount:
    """Lines and bytes counted by one thread only, so that another thread may read them without a lock."""

    lines: int = 0
    bytes: int = 0


def queue_standard_error() -> None:
    """Replace ``sys.stderr`` by a ``QueuedOutput``. For the server and the agent.

    Does nothing if standard error is closed or is queued already.
    """
    before = sys.stderr
    if before is None or isinstance(before, QueuedOutput):
        return
    with contextlib.suppress(OSError):
        before.flush()
    output = QueuedOutput(before.fileno(), encoding=before.encoding)
    sys.stderr = output
    atexit.register(output.drain, _EXIT_SECONDS)


def batched_writes() -> contextlib.AbstractContextManager[None]:
    """Return ``QueuedOutput.batched_writes`` of standard error; if it is not queued, an empty context."""
    output = sys.stderr
    return output.batched_writes() if isinstance(output, QueuedOutput) else contextlib.nullcontext()


def lines_dropped() -> int:
    """Return the number of lines that standard error has lost; 0 if it is not queued."""
    return sys.stderr.lines_dropped if isinstance(sys.stderr, QueuedOutput) else 0
