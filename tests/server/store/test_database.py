"""The database file: new, old, newer, foreign, damaged."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from pathlib import Path

import pytest

from tunnel_core.reasons import Reason
from tunnel_server.store.database import (
    StoreError,
    check_copy,
    copy_database,
    open_database,
    open_reader,
)
from tunnel_server.store.schema import STEPS


def refusal(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        open_database(path)
    assert caught.value.reason is Reason.STORE_FAILED
    assert str(path) in caught.value.detail
    return caught.value.detail


def test_a_new_one_is_private_and_safe(tmp_path: Path) -> None:
    path = tmp_path / "a b?#%.db"
    with contextlib.closing(open_database(path)) as connection:
        pragmas = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "application_id")
        }
        assert pragmas == {
            "journal_mode": "wal",
            "synchronous": 2,
            "foreign_keys": 1,
            "application_id": 0x51414E54,
        }
        connection.execute("INSERT INTO audit VALUES (1, 1, 'x', '', '', '', '', '', '', '', '')")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
        assert modes == dict.fromkeys((path.name, f"{path.name}-wal", f"{path.name}-shm"), 0o600)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    with (
        contextlib.closing(open_database(tmp_path / "s")),
        contextlib.closing(open_reader(tmp_path / "s")) as reader,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        reader.execute("DELETE FROM tokens")


def test_a_migration_runs_step_by_step_and_keeps_the_data(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with contextlib.closing(open_database(path)) as connection:
        connection.execute("INSERT INTO revocations VALUES (7, 'node', 'a', 1, '', '', 0, NULL)")
    further = (*STEPS, ("ALTER TABLE tokens ADD COLUMN note TEXT", "CREATE TABLE more (x)"))
    for _ in range(2):
        with contextlib.closing(open_database(path, steps=further)) as connection:
            versions = connection.execute("SELECT version FROM schema_versions").fetchall()
            assert [row[0] for row in versions] == list(range(1, len(further) + 1))
            assert connection.execute("SELECT number FROM revocations").fetchone()[0] == 7
    newer = f"newer version (its tables are of version {len(further)}, this program knows {len(STEPS)})"
    assert newer in refusal(path)


def test_a_store_from_before_the_table_of_nodes_knows_them_from_certificates_and_events(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    with contextlib.closing(open_database(path, steps=STEPS[:1])) as connection:
        for serial, role, name, at in (
            *(("a1", "node", "joined", 100), ("a2", "node", "joined", 200)),
            *(("a3", "node", "seen", 300), ("a4", "user", "kim", 100)),
        ):
            connection.execute(
                "INSERT INTO certificates VALUES (?, ?, ?, '', '', 0, 0, ?, 'by_hand', '', NULL)",
                (serial, role, name, at),
            )
        for number, (at, kind, node) in enumerate(
            [
                (250, "attached", "seen"),
                (400, "lost", "seen"),
                (500, "expired", "seen"),
                (90, "ended", "foreign"),
            ]
        ):
            connection.execute(
                "INSERT INTO node_events VALUES (?, ?, ?, ?, '', '', '')", (number, at, kind, node)
            )
    with contextlib.closing(open_database(path)) as connection:
        known = connection.execute("SELECT name, known_at, last_seen_at, is_attached FROM nodes").fetchall()
        assert list(map(tuple, known)) == [
            *(("foreign", 90, 90, 0), ("joined", 100, None, 0), ("seen", 250, 400, 0)),
        ]


def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    open_database(path).close()
    broken = (*STEPS, ("CREATE TABLE more (x)", "CREATE TABLE more (x)"))
    with pytest.raises(StoreError, match="already exists"):
        open_database(path, steps=broken)
    with contextlib.closing(open_database(path)) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        assert "more" not in tables


def test_a_file_that_is_no_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello" * 1000)
    assert "is damaged (file is not a database)" in refusal(tmp_path / "text")
    with contextlib.closing(sqlite3.connect(tmp_path / "other")) as other:
        other.execute("CREATE TABLE songs (x)")
    assert "of another program" in refusal(tmp_path / "other")
    (tmp_path / "folder").mkdir()
    assert "cannot be" in refusal(tmp_path / "folder")
    assert "cannot be opened: No such file or directory" in refusal(tmp_path / "nowhere" / "s")


def test_a_damaged_database_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with contextlib.closing(open_database(path)) as connection:
        for number in range(2000):
            connection.execute(
                "INSERT INTO revocations VALUES (?, 'node', 'a', 1, '', '', 0, NULL)", (number,)
            )
    data = bytearray(path.read_bytes())
    data[8192:20000] = b"\xff" * (20000 - 8192)
    path.write_bytes(data)
    detail = refusal(path)
    assert "is damaged" in detail
    assert "qanat-server restore" in detail


def test_a_copy_is_whole_by_itself_while_others_write(tmp_path: Path) -> None:
    with (
        contextlib.closing(open_database(tmp_path / "s")) as connection,
        contextlib.closing(open_reader(tmp_path / "s")) as reader,
    ):
        connection.execute("INSERT INTO revocations VALUES (1, 'node', 'a', 1, '', '', 0, NULL)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO revocations VALUES (2, 'node', 'b', 1, '', '', 0, NULL)")
        copy_database(reader, tmp_path / "copy")
        connection.execute("COMMIT")
    check_copy(tmp_path / "copy")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy", "s"]
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o600
    with contextlib.closing(sqlite3.connect(tmp_path / "copy")) as copy:
        assert copy.execute("SELECT subject FROM revocations").fetchall() == [("a",)]
