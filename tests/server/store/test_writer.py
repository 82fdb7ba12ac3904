"""The store's only writer: what it acknowledges, what it refuses, and the effect of a full disk."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.fakes.opened_store import Clock, opened
from tunnel_core.reasons import Reason, Refused
from tunnel_server.store import writer as writer_module
from tunnel_server.store.audit import AuditKind, AuditLine, AuditQuery
from tunnel_server.store.audit_file import AuditFile
from tunnel_server.store.database import Connection, StoreError, open_database
from tunnel_server.store.store import FILE, StoreSettings
from tunnel_server.store.transaction import Transaction
from tunnel_server.store.writer import Writer


def insert(subject: str) -> Callable[[Transaction], None]:
    def work(transaction: Transaction) -> None:
        transaction.connection.execute(
            "INSERT INTO revocations (kind, subject, revoked_at, revoked_by, why, newest_token)"
            " VALUES ('node', ?, ?, '', '', 0)",
            (subject, transaction.now),
        )

    return work


def subjects(connection: Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT subject FROM revocations ORDER BY number")]


class Bench:
    """A writer over a fresh database."""

    def __init__(self, folder: Path, *, must_audit: bool = False, file: AuditFile | None = None) -> None:
        self.path = folder / "s.db"
        self.connection = open_database(self.path)
        clock = iter(range(1, 10**6)).__next__
        self.writer = Writer(
            self.connection, self.path, file or AuditFile(None), clock, must_audit=must_audit
        )

    async def run_all(self, *works: Callable[[Transaction], Any]) -> list[BaseException | None]:
        """Queue the works together and serve them. Return what each raised."""
        found: list[BaseException | None] = [None] * len(works)

        async def one(index: int) -> None:
            try:
                await self.writer.run(works[index])
            except Exception as error:
                found[index] = error

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for index in range(len(works)):
                    nursery.start_soon(one, index)
                    await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(self.writer.serve)
                await self.writer.aclose()
        return found


async def test_work_is_done_in_its_order_in_another_thread(tmp_path: Path) -> None:
    bench, threads = Bench(tmp_path), set()

    def where(transaction: Transaction) -> None:
        threads.add(threading.get_ident())

    works = [insert(str(number)) for number in range(600)]
    assert await bench.run_all(where, *works) == [None] * 601
    assert subjects(bench.connection) == [str(number) for number in range(600)]
    assert threading.get_ident() not in threads
    bench.connection.close()


async def test_waiting_writes_are_one_commit(tmp_path: Path) -> None:
    bench, times = Bench(tmp_path), []
    works = [lambda transaction: times.append(transaction.now)] * 40
    await bench.run_all(*works)
    assert times == [1] * 40
    bench.connection.close()


async def test_a_refusal_takes_nothing_of_the_others(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    def refuse(transaction: Transaction) -> None:
        insert("refused")(transaction)
        transaction.audit(AuditLine(AuditKind.REFUSED))
        raise Refused(Reason.NOT_FOUND)

    def violate(transaction: Transaction) -> None:
        insert("violated")(transaction)
        transaction.connection.execute("INSERT INTO token_uses VALUES (99, 'a', 'k', 1)")

    def fail(transaction: Transaction) -> None:
        insert("failed")(transaction)
        raise KeyError("a fault of ours")

    found = await bench.run_all(insert("a"), refuse, violate, fail, insert("b"))
    assert [type(error).__name__ for error in found] == [
        *("NoneType", "Refused", "StoreError", "KeyError", "NoneType")
    ]
    assert subjects(bench.connection) == ["a", "b"]
    assert bench.connection.execute("SELECT count(*) FROM audit").fetchone()[0] == 0
    bench.connection.close()


async def test_a_full_disk_fails_what_does_not_fit_and_nothing_else(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    pages = bench.connection.execute("PRAGMA page_count").fetchone()[0]
    bench.connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    def large(transaction: Transaction) -> None:
        insert("x" * 50_000)(transaction)

    found = await bench.run_all(insert("a"), large, insert("b"))
    assert found[0] is found[2] is None
    assert isinstance(found[1], Refused)
    assert found[1].reason is Reason.STORE_FULL
    assert subjects(bench.connection) == ["a", "b"]
    bench.connection.execute("PRAGMA max_page_count = 1000000")
    again = Writer(bench.connection, bench.path, AuditFile(None), lambda: 1, must_audit=False)
    bench.writer = again
    assert await bench.run_all(large) == [None]
    assert bench.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    bench.connection.close()


async def test_failures_for_one_reason_are_at_most_one_line_a_second_and_become_rarer(
    tmp_path: Path, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)

    def fails(transaction: Transaction) -> None:
        raise StoreError(Reason.STORE_FULL, "the disk is full")

    seconds_of_lines, left_out = [], []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.writer.serve)
        for second in range(40):
            for _ in range(2):
                with pytest.raises(StoreError):
                    await bench.writer.run(fails)
            lines = [record for record in caplog.records if record.getMessage() == "the disk is full"]
            seconds_of_lines += [second] * len(lines)
            left_out += [vars(line)["fields"].get("left_out") for line in lines]
            caplog.clear()
            mock_clock.jump(1)
        await bench.writer.aclose()
    assert seconds_of_lines == [0, 1, 3, 7, 15, 25, 35]
    assert left_out == [None, 1, 3, 7, 15, 19, 19]
    bench.connection.close()


async def test_cancelled_callers_leave_the_queue_in_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0):
            await bench.writer.run(insert("given up before it was queued"))
        with trio.CancelScope() as scope:
            nursery.start_soon(bench.writer.run, insert("a"))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
        nursery.start_soon(bench.writer.serve)
        await bench.writer.run(insert("b"))
        await bench.writer.aclose()
    assert subjects(bench.connection) == ["a", "b"]
    bench.connection.close()


async def test_the_queue_is_bounded_and_a_closed_queue_refuses_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MAX_WAITING", 3)
    bench = Bench(tmp_path)
    assert [bench.writer.run_nowait(insert(str(number))) for number in range(4)] == [True, True, True, False]
    await bench.run_all()
    assert subjects(bench.connection) == ["0", "1", "2"]
    assert not bench.writer.run_nowait(insert("late"))
    with pytest.raises(Refused) as caught:
        await bench.writer.run(insert("late"))
    assert caught.value.reason is Reason.SERVER_STOPPING
    bench.connection.close()


async def test_work_that_is_never_done_is_reported(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    found: list[Reason] = []

    async def wait() -> None:
        with pytest.raises(Refused) as caught:
            await bench.writer.run(insert("a"))
        found.append(caught.value.reason)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as doomed:
                doomed.cancel_scope.cancel()
                doomed.start_soon(bench.writer.serve)
    assert found == [Reason.SERVER_STOPPING]
    assert subjects(bench.connection) == []
    bench.connection.close()


# The audit beside it.


def note(word: str) -> Callable[[Transaction], None]:
    def work(transaction: Transaction) -> None:
        insert(word)(transaction)
        transaction.audit(AuditLine(AuditKind.TAKEOVER, node=word))

    return work


async def test_lines_are_in_the_file_when_they_are_acknowledged(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    settings = StoreSettings(tmp_path / FILE, file)
    async with opened(tmp_path, settings=settings) as store:
        await store.note(AuditLine(AuditKind.TAKEOVER, node="a", source="192.0.2.1"))
        assert [json.loads(line) for line in file.read_text().splitlines()] == [
            {
                "number": 1,
                "at": "2027-01-01T00:00:00.000Z",
                "kind": "takeover",
                "node": "a",
                "source": "192.0.2.1",
            }
        ]
        file.rename(tmp_path / "collected")
        store.note_nowait(AuditLine(AuditKind.TAKEOVER, node="b"))
        await store.note(AuditLine(AuditKind.TAKEOVER, node="c"))
        assert [json.loads(line)["node"] for line in file.read_text().splitlines()] == ["b", "c"]
        assert store.audit_dropped == 0
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("must_audit", [False, True])
async def test_without_a_file_the_audit_is_dropped_and_counted_or_the_act_refused(
    tmp_path: Path, must_audit: bool
) -> None:
    file = AuditFile(tmp_path)  # a folder, so that it cannot be opened
    bench = Bench(tmp_path, must_audit=must_audit, file=file)
    found = await bench.run_all(note("a"), insert("no line"), note("b"))
    if must_audit:
        assert [isinstance(error, Refused) and error.reason for error in found] == [
            *(Reason.AUDIT_FAILED, False, Reason.AUDIT_FAILED)
        ]
        assert subjects(bench.connection) == ["no line"]
    else:
        assert found == [None, None, None]
        assert subjects(bench.connection) == ["a", "no line", "b"]
    assert bench.writer.dropped == (0 if must_audit else 2)
    bench.connection.close()


def test_an_unread_pipe_delays_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "audit.jsonl")
    errors: list[OSError] = []

    def append() -> None:
        try:
            AuditFile(tmp_path / "audit.jsonl").append([{"number": 1}])
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=append, daemon=True)
    thread.start()
    thread.join(10)
    assert [error.errno for error in errors] == [errno.ENXIO]


@pytest.mark.parametrize("must_audit", [False, True])
async def test_a_line_that_the_table_does_not_take(tmp_path: Path, must_audit: bool) -> None:
    bench = Bench(tmp_path, must_audit=must_audit)
    bench.connection.execute("CREATE TRIGGER no BEFORE INSERT ON audit BEGIN SELECT raise(abort, 'no'); END")
    (found,) = await bench.run_all(note("a"))
    assert (found is None) != must_audit
    assert subjects(bench.connection) == ([] if must_audit else ["a"])
    assert bench.writer.dropped == (0 if must_audit else 1)
    bench.connection.close()


def test_the_file_is_bounded(tmp_path: Path) -> None:
    file = AuditFile(tmp_path / "a", max_bytes=100)
    for number in range(9):
        file.append([{"number": number, "pad": "x" * 10}])
    text = "".join((tmp_path / name).read_text() for name in ("a.1", "a"))
    assert [json.loads(line)["number"] for line in text.splitlines()] == [3, 4, 5, 6, 7, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.1"]


async def test_old_lines_go_and_refusals_have_a_share_of_the_room(tmp_path: Path) -> None:
    clock = Clock()
    settings = StoreSettings(tmp_path / FILE, audit_keep_days=10, audit_keep_lines=20)
    async with opened(tmp_path, clock, settings) as store:
        await store.note(AuditLine(AuditKind.ENROLLED, node="ancient"))
        clock.pass_seconds(11 * 24 * 3600)
        for number in range(5):
            await store.note(AuditLine(AuditKind.ENROLLED, node=f"n{number}"))
        for number in range(12):
            await store.note(AuditLine(AuditKind.REFUSED, node=f"r{number}"))
        while await store.prune():
            pass
        kept = [line["node"] for line in await store.audit(AuditQuery())]
        assert kept == ["n0", "n1", "n2", "n3", "n4", "r10", "r11"]
        for number in range(30):
            await store.note(AuditLine(AuditKind.RENEWED, node=f"m{number}"))
        while await store.prune():
            pass
        assert [line["node"] for line in await store.audit(AuditQuery())] == [f"m{n}" for n in range(10, 30)]


async def test_a_flood_of_refusals_is_bounded_at_once(tmp_path: Path) -> None:
    settings = StoreSettings(tmp_path / FILE, audit_keep_lines=1000)
    async with opened(tmp_path, settings=settings) as store:
        await store.note(AuditLine(AuditKind.ENROLLED, node="first"))
        for _ in range(4):
            async with trio.open_nursery() as nursery:
                for _ in range(1500):
                    nursery.start_soon(store.note, AuditLine(AuditKind.REFUSED))
        refused = await store.audit(AuditQuery(kind=AuditKind.REFUSED))
        assert 100 <= len(refused) < 100 + writer_module.TIDY_LINES
        assert [line["node"] for line in await store.audit(AuditQuery(kind=AuditKind.ENROLLED))] == ["first"]
