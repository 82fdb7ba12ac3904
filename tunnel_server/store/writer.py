"""The one writer: pieces of work, each a small transaction, done by one thread at a time.

1. Work waits in a bounded queue. Whoever is in a hurry never enters: ``run`` waits, ``run_nowait`` drops.
2. What waits together is committed together: under load one fsync carries many, alone none waits.
   Each piece has a savepoint of its own, so one that is refused takes nothing of the others with it.
3. When such a commit fails as a whole (a full disk), each piece is tried by itself, so that nobody
   fails for his neighbour; work therefore touches nothing but its transaction.
4. The answer comes after the commit: what was acknowledged is on the disk.
5. Lines of the audit go to their file before the commit. A line may thus tell of something that then
   failed, and nothing can happen without its line where ``[audit] on_failure = "refuse"``.

A cancelled ``run`` may or may not have happened: the thread is not interrupted.
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
_MAX_BATCH = 256
"""Pieces of work in one commit."""
_LOG_SECONDS = 10.0
"""Between two lines that say the same; a full disk fails everything there is."""

T = TypeVar("T")
Work = Callable[[Transaction], T]

_log = logging.getLogger("qanat.store")


@dataclass(slots=True, eq=False)
class _Piece(Generic[T]):
    work: Work[T]
    then: Callable[[T], None] | None = None
    done: trio.Event = field(default_factory=trio.Event)
    result: Any = None
    failure: BaseException | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    is_note: bool = False
    """Nobody waits for it: if it fails, a line is lost."""


class Writer:
    """``clock`` gives milliseconds since 1970; it is asked in the writing thread."""

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
        """``tidy`` is done after every ``TIDY_LINES`` lines of the audit: no flood outgrows the disk."""
        self.dropped = 0
        """Lines of the audit that were lost."""
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
        self._thread = trio.CapacityLimiter(1)  # its own, so that nothing else can hold it up
        self._lines = LineLimiter(_LOG_SECONDS)

    @property
    def is_failing(self) -> bool:
        """Whether the last that was to be written could not be; where the audit may be refused, to its
        file too. Lines that may be dropped are counted instead."""
        return self._is_store_failing or self._is_audit_failing

    async def run(self, work: Work[T], then: Callable[[T], None] | None = None) -> T:
        """Does the work in a transaction and returns what it returned, after the commit.

        Raises what the work raised, which then has changed nothing, or ``StoreError``. ``then`` hears
        the result in the trio thread: in the order of the transactions, and whoever was cancelled.
        """
        piece = _Piece(work, then)
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
        """Puts a line of the audit into the queue that nobody waits for. Returns whether there was room.

        One that then fails is counted as lost.
        """
        try:
            self._put.send_nowait(_Piece(work, is_note=True))
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            return False
        return True

    async def serve(self) -> None:
        """Works until ``aclose``, and then to the end of the queue. Cancelled: leaves the queue undone."""
        waiting: list[_Piece[Any]] = []
        try:
            async for first in self._take:
                waiting = [first, *self._taken_nowait(_MAX_BATCH - 1)]
                await trio.to_thread.run_sync(self._commit, waiting, limiter=self._thread)
                self._finish(waiting)
                waiting = []
        finally:
            self._abandon([*waiting, *self._taken_nowait(MAX_WAITING)])
            self._take.close()
            self._ended.set()

    async def aclose(self) -> None:
        """Takes no more work and waits until what is there is done."""
        self._put.close()
        await self._ended.wait()

    def _taken_nowait(self, most: int) -> list[_Piece[Any]]:
        taken: list[_Piece[Any]] = []
        while len(taken) < most:
            try:
                taken.append(self._take.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break
        return taken

    def _finish(self, pieces: list[_Piece[Any]]) -> None:
        for piece in pieces:
            self.dropped += piece.is_note and piece.failure is not None
            if isinstance(piece.failure, StoreError):
                self._is_store_failing = True
                self._log_failure(piece.failure)
            elif piece.failure is None and piece.then is not None:
                piece.then(piece.result)
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
        """One transaction. Returns False if it failed as a whole; then each piece has the failure."""
        transaction = Transaction(self._connection, self._clock(), self._must_audit)
        before = self._connection.total_changes
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for piece in pieces:
                self._do(piece, transaction)
            self._append([line for piece in pieces for line in piece.lines], transaction)
            self._connection.execute("COMMIT")
        except (DatabaseFailure, OSError, Refused) as error:
            self._fail(pieces, error)
            return False
        if self._connection.total_changes != before:  # else the disk was not asked
            self._is_store_failing = False
        self.dropped += transaction.dropped
        self._untidy_lines += sum(len(piece.lines) for piece in pieces)
        return True

    def _do(self, piece: _Piece[Any], transaction: Transaction) -> None:
        piece.failure, piece.lines, transaction.lines = None, [], []
        self._connection.execute("SAVEPOINT piece")
        try:
            piece.result = piece.work(transaction)
            piece.lines = transaction.lines
        except Exception as error:
            if not self._connection.in_transaction:  # a full disk ends all of it
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
                sentence = f"the audit's file cannot be written: {error.strerror}; nothing was done"
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
    return StoreError(Reason.SERVER_STOPPING, "the store is closed, since the server stops")
