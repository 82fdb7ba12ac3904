from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from tunnel_core.reasons import Reason
from tunnel_core.telemetry.logs import StreamFacts
from tunnel_server.accounting import stream_audit
from tunnel_server.accounting.stream_audit import StreamAudit
from tunnel_server.store.database import StoreError
from tunnel_server.store.stream_log import StreamRecord

NOW = datetime(2027, 1, 1, tzinfo=UTC)
NOW_MS = 1798761600000


class Written:
    """A recorder with the store that it writes to."""

    def __init__(self, **one_in: int) -> None:
        self.batches: list[list[StreamRecord]] = []
        self.lost = 0
        self.fails = False
        self.audit = StreamAudit(self._add, self._count, one_in, lambda: NOW)

    async def _add(self, records: Sequence[StreamRecord]) -> None:
        if self.fails:
            raise StoreError(Reason.STORE_FULL, "full")
        self.batches.append(list(records))

    def _count(self, count: int) -> None:
        self.lost += count

    def note(
        self, reason: Reason = Reason.DONE, user: str = "kim", entrance: str = "web", **more: Any
    ) -> None:
        facts = StreamFacts("0a-1", user, "n1", "ssh", entrance, "10.0.0.1:5")
        self.audit.note(facts, reason, grant="g7", **{"address": "127.0.0.1:22", **more})

    async def records(self) -> list[StreamRecord]:
        await self.audit.flush()
        return [record for batch in self.batches for record in batch]


async def test_a_record_says_who_what_when_where_and_how_it_ended() -> None:
    written = Written()
    written.note(seconds=1.5, bytes_to_target=7, bytes_to_user=9)
    assert await written.records() == [
        StreamRecord(
            *(NOW_MS - 1500, NOW_MS, "0a-1", "kim", "n1", "ssh", "127.0.0.1:22", "web", "10.0.0.1:5", "g7"),
            *("done", 7, 9),
        )
    ]


async def test_the_configuration_chooses_by_entrance_and_policy_is_always_recorded() -> None:
    written = Written(web=10, tcp=0)
    for _ in range(25):
        written.note()
        written.note(entrance="tcp")
        written.note(entrance="connect")
    written.note(Reason.NOT_GRANTED, entrance="tcp")  # ended by a change
    written.note(Reason.TARGET_NOT_ALLOWED, entrance="tcp", address="")
    written.note(Reason.REVOKED, entrance="tcp")
    entrances = [record.entrance for record in await written.records()]
    assert [entrances.count(name) for name in ("web", "tcp", "connect")] == [3, 3, 25]


async def test_what_the_grants_refuse_is_in_the_audit_and_not_here() -> None:
    written = Written()
    written.note(Reason.NOT_GRANTED, address="")
    assert not await written.records()


async def test_records_are_written_in_batches_and_wait_for_a_failing_store() -> None:
    written = Written()
    written.fails = True
    for number in range(2500):
        written.note(user=f"u{number % 5}")
    assert not await written.records()
    written.fails = False
    await written.audit.flush()
    assert list(map(len, written.batches)) == [1000, 1000, 500]
    await written.audit.flush()
    assert len(written.batches) == 3


async def test_waiting_records_are_bounded_for_all_and_for_each_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_audit, "MAX_WAITING", 8)
    monkeypatch.setattr(stream_audit, "MAX_WAITING_OF_USER", 2)
    written = Written()
    for user in ("kim", "kim", "kim", "a", "a", "b", "b", "c", "c", "d"):
        written.note(user=user)
    assert written.lost == 2
    assert [record.user for record in await written.records()] == ["kim", "kim", "a", "a", "b", "b", "c", "c"]
    written.note()
    assert len(await written.records()) == 9
