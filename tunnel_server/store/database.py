"""The SQLite file: opened, checked, brought up to date. The one module that knows ``sqlite3``.

WAL with ``synchronous = FULL``: a transaction that was committed is on the disk, and readers never wait
for the writer. The file and those beside it are open to their owner alone: digests and names are in it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from certs.authority_folder import chown_like
from certs.files import PRIVATE
from tunnel_core.config.paths import rights_hint
from tunnel_core.reasons import Reason, Refused
from tunnel_server.store.schema import APPLICATION_ID, STEPS, MigrationStep

Connection: TypeAlias = sqlite3.Connection
Row: TypeAlias = sqlite3.Row

DatabaseFailure = sqlite3.Error

_BUSY_SECONDS = 5.0
"""Only ``backup`` and a person's ``sqlite3`` ever hold a lock beside us."""
_WAL_PAGES = 1000
"""Between checkpoints: 4 MiB, SQLite's own default, said here because the disk must have room for it."""
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class StoreError(Refused):
    """The store could not do it. Nothing of what was asked for has happened."""


def open_database(path: Path, *, steps: Sequence[MigrationStep] = STEPS) -> Connection:
    """The database for reading and writing, made if it is missing, with today's tables.

    Blocks. Raises ``StoreError`` for a file that is damaged, foreign or from a newer version.
    """
    with failures(path):
        _make(path)
        connection = _connect(path, "rw")
        try:
            for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {setting}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
            _check(connection, path)
            _migrate(connection, path, steps)
        except BaseException:
            connection.close()
            raise
    return connection


def open_reader(path: Path) -> Connection:
    """A connection that cannot write. Blocks. Raises ``StoreError``."""
    with failures(path):
        connection = _connect(path, "rw")
        connection.execute("PRAGMA query_only = ON")
    return connection


def copy_database(source: Connection, target: Path) -> None:
    """A consistent copy, taken while others write. Blocks. Raises ``StoreError`` or ``OSError``."""
    _make(target)
    with failures(target), contextlib.closing(_connect(target, "rw")) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, complete by itself


def check_copy(path: Path, *, steps: Sequence[MigrationStep] = STEPS) -> None:
    """Raises ``StoreError`` unless ``path`` is a whole database of ours that this version can use."""
    with failures(path), contextlib.closing(_connect(path, "ro")) as connection:
        _check(connection, path)
        _require_known(_version(connection), path, steps)


@contextlib.contextmanager
def failures(path: Path) -> Iterator[None]:
    """Turns what SQLite raises into ``StoreError``."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(error, path) from error
    except OSError as error:
        hint = rights_hint(error)
        sentence = f"{path} cannot be opened: {error.strerror}"
        raise StoreError(Reason.STORE_FAILED, f"{sentence}; {hint}" if hint else sentence) from error


def store_error(error: sqlite3.Error, path: Path) -> StoreError:
    """The refusal that stands for a failure of SQLite's."""
    code = primary_code(error)
    if code == sqlite3.SQLITE_FULL:
        return StoreError(Reason.STORE_FULL, f"the disk of {path} is full; nothing was changed")
    if code in _DAMAGED:
        return _damaged(path, str(error))
    return StoreError(Reason.STORE_FAILED, f"{path} cannot be read or written: {error}")


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code without its extension; 0 for errors of the module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _damaged(path: Path, found: str) -> StoreError:
    sentence = f"{path} is damaged ({found[:200]}); restore a backup with `qanat-server restore`"
    return StoreError(Reason.STORE_FAILED, sentence)


def _make(path: Path) -> None:
    """An empty file with the right mode: SQLite would go by the umask, and gives its others the same."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, PRIVATE)
    except FileExistsError:
        return
    os.close(descriptor)
    chown_like(path.parent, path)


def _connect(path: Path, mode: str) -> Connection:
    # A connection is used by one thread at a time, but not always by the same.
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.row_factory = sqlite3.Row
    return connection


def _check(connection: Connection, path: Path) -> None:
    found = _value(connection, "PRAGMA application_id")
    if found not in (0, APPLICATION_ID) or (found == 0 and _value(connection, "PRAGMA schema_version")):
        raise StoreError(Reason.STORE_FAILED, f"{path} is a database of another program")
    report = _value(connection, "PRAGMA quick_check(1)")
    if report != "ok":
        raise _damaged(path, str(report))


def _migrate(connection: Connection, path: Path, steps: Sequence[MigrationStep]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection)
        _require_known(version, path, steps)
        for number, step in enumerate(steps[version:], start=version + 1):
            for statement in step:
                connection.execute(statement)
            now = int(time.time() * 1000)
            connection.execute("INSERT INTO schema_versions VALUES (?, ?)", (number, now))
        if version < len(steps):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: Connection) -> int:
    known = "SELECT count(*) FROM sqlite_master WHERE name = 'schema_versions'"
    if not _value(connection, known):
        return 0
    return int(_value(connection, "SELECT coalesce(max(version), 0) FROM schema_versions"))


def _require_known(version: int, path: Path, steps: Sequence[MigrationStep]) -> None:
    if version > len(steps):
        raise StoreError(
            Reason.STORE_FAILED,
            f"{path} was written by a newer version (its tables are of version {version}, this program knows"
            f" {len(steps)}); update qanat-server, or restore a backup of before",
        )


def _value(connection: Connection, query: str) -> Any:
    row = connection.execute(query).fetchone()
    return row[0] if row else None
