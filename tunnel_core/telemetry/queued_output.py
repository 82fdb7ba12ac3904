"""Write standard error in a thread of its own, so that a stopped log reader stops nothing else.

1. A write to a pipe, a terminal or a slow disk blocks while its reader does not read. In the event loop
   it would stop every stream, so :class:`QueuedOutput` takes the place of ``sys.stderr``: log lines,
   warnings, tracebacks and the last sentence of a command all pass through one queue, in their order.
2. The queue is bounded in lines and bytes. What does not fit is dropped and counted. One line that says
   how many were lost stands where they would have stood.
3. An error of the output (reader gone, disk full, descriptor closed) loses the lines of that write and is
   never raised. Every later write tries again. A line that was cut short is ended first.
4. At exit the queue gets ``_EXIT_SECONDS`` to empty. The thread is a daemon, so a stopped reader cannot
   hold the process.

Standard output is not queued: a command that prints its answer has nothing else to do meanwhile.
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
"""So much is joined for one write: what a pipe of Linux holds."""
_EXIT_SECONDS = 1.0
"""Time for the queued lines at the end of the process."""
_BUSY_SECONDS = 0.01
"""Between two attempts at a non-blocking output, in case it claims to be ready and is not."""
_NO_READER = "its reader did not read"


class _Loss(NamedTuple):
    """Lines that were lost, and why; stands in the queue where the lines would have stood."""

    lines: int
    cause: str


class _Line(NamedTuple):
    """One line as bytes. A notice carries the loss that it speaks of."""

    data: bytes
    loss: _Loss | None = None


_Item: TypeAlias = _Line | _Loss | list["_Line | _Loss"] | threading.Event
"""An event is set when everything before it is out."""


def _plain_notice(lines: int, cause: str) -> str:
    return f"{lines} lines of the log were lost: {cause}\n"


class QueuedOutput(io.TextIOBase):
    """A text stream over ``descriptor`` whose writes never block and never raise ``OSError``.

    Any thread may write, a signal handler too. A write that ends with a newline is one line, however many
    newlines it holds: it is written as a whole or dropped as a whole.
    """

    def __init__(self, descriptor: int, *, encoding: str = "utf-8") -> None:
        self.notice: Callable[[int, str], str] = _plain_notice
        """Makes the line that reports how many lines were lost, and why."""
        self._descriptor = descriptor
        self._encoding = encoding
        self._is_terminal = os.isatty(descriptor)
        self._queue: SimpleQueue[_Item] = SimpleQueue()  # a signal handler may re-enter its put
        self._lock = threading.RLock()  # never held while anything is written
        self._pending = ""
        self._held: list[_Line | _Loss] | None = None
        self._missing = 0
        self._dropped = 0
        self._put, self._taken = _Amount(), _Amount()
        self._out = _Output(descriptor, self._notice_of)
        threading.Thread(target=self._work, name="log-writer", daemon=True).start()

    # What a text stream has.

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
        with self._lock:
            whole = self._pending + text
            is_complete = whole.endswith("\n") or len(whole) > _WRITE_BYTES
            self._pending = "" if is_complete else whole
            if is_complete:
                self._enqueue(self._encode(whole))
        return len(text)

    def write_line(self, line: str) -> None:
        """As ``write``, for a line without its newline."""
        with self._lock:
            if self._pending:
                self.write("\n")
            self._enqueue(self._encode(line + "\n"))

    def flush(self) -> None:
        """Nothing: the thread writes as soon as it can. See :meth:`drain`."""

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Wakes the thread once, at the end of the block, for all lines that are written inside of it.

        To wake it costs as much as to make a line. For one thread; a block inside of a block does nothing.
        """
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
        finally:
            with self._lock:
                held, self._held = self._held, None
                if held:
                    self._queue.put(held)

    # What this one has.

    @property
    def lines_dropped(self) -> int:
        """How many lines were lost since the start: for want of room, or by an error of the output."""
        return self._dropped + self._out.lines_failed

    def drain(self, seconds: float) -> bool:
        """Wait until everything written before is out, for at most ``seconds``. Return whether it is."""
        reached = threading.Event()
        with self._lock:
            if self._pending:
                self.write("\n")
            self._note_missing()
            self._queue.put(reached)
        return reached.wait(seconds)

    def _encode(self, text: str) -> bytes:
        return text.encode(self._encoding, "backslashreplace")

    def _enqueue(self, data: bytes) -> None:
        lines = self._put.lines - self._taken.lines
        size = self._put.bytes - self._taken.bytes
        if lines >= MAX_LINES or (lines and size + len(data) > MAX_BYTES):
            self._missing += 1
            self._dropped += 1
            return
        self._note_missing()
        self._put.lines += 1
        self._put.bytes += len(data)
        self._append(_Line(data))

    def _append(self, item: _Line | _Loss) -> None:
        if self._held is None:
            self._queue.put(item)
        else:
            self._held.append(item)

    def _note_missing(self) -> None:
        missing, self._missing = self._missing, 0
        if missing:
            self._append(_Loss(missing, _NO_READER))

    # In the thread.

    def _work(self) -> None:
        while True:
            lines, reached = self._collect()
            self._out.write(lines)
            own = [line for line in lines if line.loss is None]
            self._taken.lines += len(own)
            self._taken.bytes += sum(len(line.data) for line in own)
            if reached is not None:
                reached.set()
            if self._missing:
                with self._lock:
                    self._note_missing()

    def _collect(self) -> tuple[list[_Line], threading.Event | None]:
        """Waits for an item and takes what waits behind it, as far as one write has room."""
        lines: list[_Line] = []
        size = 0
        item: _Item | None = self._queue.get()
        while item is not None and not isinstance(item, threading.Event):
            for one in item if isinstance(item, list) else (item,):
                lines.append(self._notice_of(one) if isinstance(one, _Loss) else one)
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
    """Writes lines to a descriptor, in the thread alone; remembers what it could not write."""

    def __init__(self, descriptor: int, notice_of: Callable[[_Loss], _Line]) -> None:
        self.lines_failed = 0
        self._descriptor = descriptor
        self._notice_of = notice_of
        self._unsaid = 0
        self._cause = ""
        self._is_torn = False

    def write(self, lines: list[_Line]) -> None:
        """Writes them all, however long that takes, or notes what an error has cost."""
        if not lines:
            return
        if self._unsaid:
            lines = [self._notice_of(_Loss(self._unsaid, self._cause)), *lines]
            self._unsaid = 0
        end_of_torn = b"\n" if self._is_torn else b""
        data = end_of_torn + b"".join(line.data for line in lines)
        written, error = _write_all(self._descriptor, data)
        if written:
            self._is_torn = data[written - 1 : written] != b"\n"
        if error is not None:
            self._lose(lines, written - len(end_of_torn), error)

    def _lose(self, lines: list[_Line], written: int, error: OSError) -> None:
        self._cause = error.strerror or type(error).__name__
        end = 0
        for line in lines:
            end += len(line.data)
            if end > written:
                self.lines_failed += line.loss is None
                self._unsaid += line.loss.lines if line.loss else 1


def _write_all(descriptor: int, data: bytes) -> tuple[int, OSError | None]:
    """Returns how many bytes were written, and the error that ended it."""
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
    """Another program that shares the output may have made it non-blocking; it is left as it is."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()
    time.sleep(_BUSY_SECONDS)


@dataclass(slots=True)
class _Amount:
    """Counted up by one side alone, so that the other may read it without a lock."""

    lines: int = 0
    bytes: int = 0


def queue_standard_error() -> None:
    """From now on everything that is written to ``sys.stderr`` passes through a queue.

    For programs that serve others. Does nothing if standard error is closed, or is queued already.
    """
    before = sys.stderr
    if before is None or isinstance(before, QueuedOutput):
        return
    with contextlib.suppress(OSError):
        before.flush()
    output = QueuedOutput(before.fileno(), encoding=before.encoding)
    sys.stderr = output
    atexit.register(output.drain, _EXIT_SECONDS)


def together() -> contextlib.AbstractContextManager[None]:
    """Hands over what is written to standard error in the block at once, where it is queued."""
    output = sys.stderr
    return output.together() if isinstance(output, QueuedOutput) else contextlib.nullcontext()


def lines_dropped() -> int:
    """Lines that standard error has lost; 0 where it is not queued."""
    return sys.stderr.lines_dropped if isinstance(sys.stderr, QueuedOutput) else 0
