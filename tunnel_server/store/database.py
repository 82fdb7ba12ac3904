"""Open, check and migrate the SQLite file. Only this module imports ``sqlite3``.

With WAL and ``synchronous = FULL`` a committed transaction is on the disk, and readers never wait for the
writer. Only the owner can open the file and those beside it, because it contains digests and names.
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
"""Wait for a lock. Besides the server only ``backup`` and a person's ``sqlite3`` ever hold one."""
_WAL_PAGES = 1000
"""Pages between two checkpoints: 4 MiB, SQLite's default, set here because the disk must have that room."""
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class StoreError(Refused):
    """The store failed. Nothing that the caller asked for was done."""


def open_database(path: Path, *, steps: Sequence[MigrationStep] = STEPS) -> Connection:
    """Open the database for reading and writing, and migrate it; create it if it is missing.

    Blocks. Raises ``StoreError`` for a file that is damaged, of another program, or of a newer version.
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
    """Return a connection that cannot write. Blocks. Raises ``StoreError``."""
    with failures(path):
        connection = _connect(path, "rw")
        connection.execute("PRAGMA query_only = ON")
    return connection


def copy_database(source: Connection, target: Path) -> None:
    """Write a consistent copy, even while others write. Blocks. Raises ``StoreError`` or ``OSError``."""
    _make(target)
    with failures(target), contextlib.closing(_connect(target, "rw")) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a WAL beside it


def check_copy(path: Path, *, steps: Sequence[MigrationStep] = STEPS) -> None:
    """Raise ``StoreError`` unless ``path`` is an undamaged store of a version that this program can use."""
    with failures(path), contextlib.closing(_connect(path, "ro")) as connection:
        _check(connection, path)
        _require_known(_version(connection), path, steps)


@contextlib.contextmanager
def failures(path: Path) -> Iterator[None]:
    """Convert the exceptions of SQLite, and ``OSError``, to ``StoreError``."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(error, path) from error
    except OSError as error:
        hint = rights_hint(error)
        sentence = f"{path} cannot be opened: {error.strerror}"
        raise StoreError(Reason.STORE_FAILED, f"{sentence}; {hint}" if hint else sentence) from error


def store_error(error: sqlite3.Error, path: Path) -> StoreError:
    """Return the refusal for a failure of SQLite."""
    code = primary_code(error)
    if code == sqlite3.SQLITE_FULL:
        return StoreError(Reason.STORE_FULL, f"the disk of {path} is full; nothing was changed")
    if code in _DAMAGED:
        return _damaged(path, str(error))
    return StoreError(Reason.STORE_FAILED, f"{path} cannot be read or written: {error}")


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's result code without its extension; 0 for errors of the Python module."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _damaged(path: Path, report: str) -> StoreError:
    sentence = f"{path} is damaged ({report[:200]}); restore a backup with `qanat-server restore`"
    return StoreError(Reason.STORE_FAILED, sentence)


def _make(path: Path) -> None:
    """Create an empty private file. SQLite would use the umask, and copies this mode to its further files."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, PRIVATE)
    except FileExistsError:
        return
    os.close(descriptor)
    chown_like(path.parent, path)


def _connect(path: Path, mode: str) -> Connection:
    # One thread at a time uses a connection, but not always the same thread.
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
    application_id = _value(connection, "PRAGMA application_id")
    if application_id not in (0, APPLICATION_ID) or (
        application_id == 0 and _value(connection, "PRAGMA schema_version")
    ):
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
                connection.execute(statement, {"old_version": version})
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
