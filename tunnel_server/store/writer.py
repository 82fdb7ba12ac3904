"""The only writer of the store: one thread at a time executes pieces of work, each a small transaction.

1. Work waits in a bounded queue. If the queue is full, ``run`` waits and ``run_nowait`` drops its line.
2. All waiting pieces are committed together, so that under load one fsync serves many. A single piece waits
   for no others. Each piece has its own savepoint, so a refused piece rolls back nothing of the others.
3. If the common commit fails, for example because the disk is full, each piece is tried again alone. No piece
   fails because of another. A piece of work may therefore run twice and must change only its transaction.
4. ``run`` returns after the commit, so an acknowledged change is on the disk.
5. Audit lines are written to their file before the commit. A line may therefore describe an act that then
   failed. With ``[audit] on_failure = "refuse"`` no act happens without its line.

A cancelled ``run`` may or may not have happened, because the thread is not interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import trio

from tunnel_core.reasons import Reason, Refused
from tunnel_core.telemetry.line_limiter import LineLimiter
from tunnel_core.telemetry.logs import log_event
from tunnel_server.store.audit_file import AuditFile
from tunnel_server.store.database import Connection, DatabaseFailure, StoreError, store_error
from tunnel_server.store.transaction import Transaction

MAX_WAITING = 2000
"""Pieces of work that wait for the store: so many agents may enrol or renew at one moment and still wait for
the disk."""
TIDY_LINES = 1000
"""Audit lines after which the writer prunes the audit."""
_MAX_BATCH = 256
"""Pieces of work in one commit."""
_LONGEST_LOG_SECONDS = 10.0
"""Longest time between two log lines with the same reason, because a full disk fails every write."""

T = TypeVar("T")
Work = Callable[[Transaction], T]

_log = logging.getLogger("qanat.store")


@dataclass(slots=True, eq=False)
class _Piece(Generic[T]):
    work: Work[T]
    on_committed: Callable[[T], None] | None = None
    done: trio.Event = field(default_factory=trio.Event)
    result: Any = None
    failure: BaseException | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    is_note: bool = False
    """No caller waits for the result. If the piece fails, an audit line is lost."""


class Writer:
    """The writer of a store. ``clock`` gives milliseconds since 1970, and is called in the writing thread."""

    def __init__(
        self,
        connection: Connection,
        path: Path,
        file: AuditFile,
        clock: Callable[[], int],
        *,
        must_audit: bool,
        tidy: Work[Any] | None = None,
    ) -> None:
        """``tidy`` runs after every ``TIDY_LINES`` audit lines, so that no flood of lines fills the disk.

        ``must_audit``: an act fails if its audit line cannot be written.
        """
        self.dropped = 0
        """The number of audit lines that were lost."""
        self._is_store_failing = self._is_audit_failing = False
        self._connection = connection
        self._path = path
        self._file = file
        self._clock = clock
        self._must_audit = must_audit
        self._tidy = tidy
        self._untidy_lines = 0
        self._put, self._take = trio.open_memory_channel[_Piece[Any]](MAX_WAITING)
        self._ended = trio.Event()
        self._thread = trio.CapacityLimiter(1)  # not shared, so that no other thread work delays it
        self._lines = LineLimiter(longest_seconds=_LONGEST_LOG_SECONDS)

    @property
    def is_failing(self) -> bool:
        """Whether the last write to the store failed; with ``must_audit`` also the last one to the audit
        file.

        Audit lines that may be dropped are counted in ``dropped`` instead.
        """
        return self._is_store_failing or self._is_audit_failing

    async def run(self, work: Work[T], on_committed: Callable[[T], None] | None = None) -> T:
        """Run the work in a transaction, and return its result after the commit.

        Raises the exception of the work, which then has changed nothing, or ``StoreError``. ``on_committed``
        is called with the result in the trio thread, in the order of the transactions. A cancelled call may
        or may not have happened; if it has, ``on_committed`` is called all the same.
        """
        piece = _Piece(work, on_committed)
        try:
            await self._put.send(piece)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise _closed() from None
        await piece.done.wait()
        if piece.failure is not None:
            raise piece.failure
        result: T = piece.result
        return result

    def run_nowait(self, work: Work[Any]) -> bool:
        """Queue work that writes an audit line, without waiting for it. Returns False if the queue is full.

        A line that fails later is counted in ``dropped``.
        """
        try:
            self._put.send_nowait(_Piece(work, is_note=True))
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            return False
        return True

    async def serve(self) -> None:
        """Execute work until ``aclose``, then the rest of the queue. A cancellation fails the queued work."""
        batch: list[_Piece[Any]] = []
        try:
            async for first in self._take:
                batch = [first, *self._take_nowait(_MAX_BATCH - 1)]
                await trio.to_thread.run_sync(self._commit, batch, limiter=self._thread)
                self._finish(batch)
                batch = []
        finally:
            self._abandon([*batch, *self._take_nowait(MAX_WAITING)])
            self._take.close()
            self._ended.set()

    async def aclose(self) -> None:
        """Accept no more work, and wait until the queued work is done."""
        self._put.close()
        await self._ended.wait()

    def _take_nowait(self, most: int) -> list[_Piece[Any]]:
        pieces: list[_Piece[Any]] = []
        while len(pieces) < most:
            try:
                pieces.append(self._take.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break
        return pieces

    def _finish(self, pieces: list[_Piece[Any]]) -> None:
        for piece in pieces:
            self.dropped += piece.is_note and piece.failure is not None
            if isinstance(piece.failure, StoreError):
                self._is_store_failing = True
                self._log_failure(piece.failure)
            elif piece.failure is None and piece.on_committed is not None:
                piece.on_committed(piece.result)
            piece.done.set()

    def _log_failure(self, failure: StoreError) -> None:
        left_out = self._lines.note(failure.reason, trio.current_time())
        if left_out is not None:
            fields = {"reason": failure.reason, "left_out": left_out or None}
            log_event(_log, logging.ERROR, failure.detail, **fields)

    def _abandon(self, pieces: list[_Piece[Any]]) -> None:
        for piece in pieces:
            piece.failure = _closed()
            piece.done.set()

    # In the thread.

    def _commit(self, pieces: list[_Piece[Any]]) -> None:
        if not self._try(pieces) and len(pieces) > 1:
            for piece in pieces:
                self._try([piece])
        if self._tidy is not None and self._untidy_lines >= TIDY_LINES:
            self._untidy_lines = 0
            self._try([_Piece(self._tidy)])

    def _try(self, pieces: list[_Piece[Any]]) -> bool:
        """Commit the pieces in one transaction. If it fails, give each piece the failure and return False."""
        transaction = Transaction(self._connection, self._clock(), self._must_audit)
        before = self._connection.total_changes
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for piece in pieces:
                self._run_piece(piece, transaction)
            self._append([line for piece in pieces for line in piece.lines], transaction)
            self._connection.execute("COMMIT")
        except (DatabaseFailure, OSError, Refused) as error:
            self._fail(pieces, error)
            return False
        if self._connection.total_changes != before:  # otherwise nothing was written to the disk
            self._is_store_failing = False
        self.dropped += transaction.dropped
        self._untidy_lines += sum(len(piece.lines) for piece in pieces)
        return True

    def _run_piece(self, piece: _Piece[Any], transaction: Transaction) -> None:
        piece.failure, piece.lines, transaction.lines = None, [], []
        self._connection.execute("SAVEPOINT piece")
        try:
            piece.result = piece.work(transaction)
            piece.lines = transaction.lines
        except Exception as error:
            if not self._connection.in_transaction:  # a full disk rolls back the whole transaction
                raise
            self._connection.execute("ROLLBACK TO piece")
            piece.failure = self._as_failure(error)
        self._connection.execute("RELEASE piece")

    def _append(self, lines: list[dict[str, Any]], transaction: Transaction) -> None:
        try:
            self._file.append(lines)
            self._is_audit_failing = self._is_audit_failing and not lines
        except OSError as error:
            if self._must_audit:
                self._is_audit_failing = True
                sentence = f"the audit file cannot be written: {error.strerror}; nothing was changed"
                raise Refused(Reason.AUDIT_FAILED, sentence) from error
            transaction.dropped += len(lines)

    def _fail(self, pieces: list[_Piece[Any]], error: Exception) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        for piece in pieces:
            piece.failure = self._as_failure(error)

    def _as_failure(self, error: Exception) -> BaseException:
        return store_error(error, self._path) if isinstance(error, DatabaseFailure) else error


def _closed() -> StoreError:
    return StoreError(Reason.SERVER_STOPPING, "the store is closed, because the server stops")
