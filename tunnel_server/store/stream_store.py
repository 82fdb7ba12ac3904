"""Records of streams of an open store. Methods raise ``StoreError`` if the store fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from tunnel_server.store import stream_log
from tunnel_server.store.database import Connection
from tunnel_server.store.stream_log import StreamQuery, StreamRecord
from tunnel_server.store.transaction import Transaction

_PRUNE_AFTER = 1000
"""Records between two prunes, so that no flood of streams fills the disk. Each prune removes more."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How many records are kept, and for how long: ``keep_days`` of named entrances, ``days`` of others."""

    keep: int = 1_000_000
    days: float = 90.0
    keep_days: Mapping[str, float] = field(default_factory=dict)


class _Write(Protocol):
    def __call__(self, work: Callable[[Transaction], T]) -> Awaitable[T]: ...


class _Read(Protocol):
    def __call__(self, query: Callable[[Connection], T]) -> Awaitable[T]: ...


class StreamStore:
    """The part of ``Store`` that keeps records of streams. ``lost`` counts those that were not written."""

    def __init__(self, write: _Write, read: _Read, settings: StreamSettings) -> None:
        self._write, self._read, self._settings = write, read, settings
        self._unpruned = 0
        self.lost = 0

    def count_lost(self, count: int) -> None:
        """Count records that had no room."""
        self.lost += count

    async def add(self, records: Sequence[StreamRecord]) -> None:
        """Store records, and remove old ones after each ``_PRUNE_AFTER``."""

        def add(transaction: Transaction) -> None:
            stream_log.add(transaction.connection, records)
            self._unpruned += len(records)
            if self._unpruned >= _PRUNE_AFTER:
                self._unpruned = 0
                self.prune(transaction, 2 * _PRUNE_AFTER + len(records))

        await self._write(add)

    async def find(self, query: StreamQuery) -> list[dict[str, Any]]:
        """Return the newest records that match as JSON, newest last."""
        return await self._read(lambda connection: stream_log.find(connection, query))

    def prune(self, transaction: Transaction, most: int) -> int:
        """Remove some records that are too old or too many, and return their number."""
        settings = self._settings
        return stream_log.prune(
            transaction.connection,
            transaction.now,
            keep=settings.keep,
            keep_days=settings.keep_days,
            days=settings.days,
            most=most,
        )
