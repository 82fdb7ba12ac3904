"""Writing of node events from the event log to the store."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.fakes.opened_store import Clock, certificate, opened
from tunnel_core.reasons import Reason
from tunnel_server.accounting import event_writer as keeping
from tunnel_server.accounting.event_writer import EventWriter, describe_start
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.events.event_log import EventKind, Events
from tunnel_server.store.audit import AuditQuery
from tunnel_server.store.database import StoreError
from tunnel_server.store.store import StoreSettings

REFUSALS = Refusals(lambda line: None, lambda: 0.0)


async def test_each_event_is_kept_once_and_a_takeover_is_audited(tmp_path: Path) -> None:
    events = Events(Clock())
    events.add(EventKind.ATTACHED, "before", "s0")
    async with opened(tmp_path) as store:
        keeper = EventWriter(events, REFUSALS, store)
        events.add(EventKind.ATTACHED, "edge1", "s1")
        events.add(EventKind.TAKEN_OVER, "edge1", "s1", Reason.TAKEN_OVER, "from 192.0.2.1")
        events.add(EventKind.DUPLICATE, "edge1", "s2")
        await keeper.flush()
        await keeper.flush()
        assert [event.kind for event in await store.events()] == [
            *(EventKind.ATTACHED, EventKind.TAKEN_OVER, EventKind.DUPLICATE)
        ]
        await store.add_events([])  # behind the lines of the audit, for which no caller waits
        lines = await store.audit(AuditQuery())
        assert [(line["kind"], line["node"], line["detail"]) for line in lines] == [
            ("takeover", "edge1", "taken_over: from 192.0.2.1"),
            ("takeover", "edge1", "duplicate: "),
        ]


async def test_many_events_go_in_pieces_and_while_the_store_fails_they_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_BATCH", 3)
    events = Events(Clock())
    async with opened(tmp_path) as store:
        keeper = EventWriter(events, REFUSALS, store)
        for number in range(8):
            events.add(EventKind.LOST, f"n{number}", "s")

        async def fail(kept: object) -> None:
            raise StoreError(Reason.STORE_FULL)

        with monkeypatch.context() as patch:
            patch.setattr(store, "add_events", fail)
            await keeper.flush()
        assert await store.events() == []
        await keeper.flush()
        assert [event.node for event in await store.events()] == [f"n{number}" for number in range(8)]


async def test_nodes_are_known_over_a_restart_with_when_they_were_seen(tmp_path: Path) -> None:
    clock = Clock()
    began = clock.now
    events = Events(clock)
    async with opened(tmp_path, clock) as store:
        keeper = EventWriter(events, REFUSALS, store)
        await store.record(certificate("never"))
        for node in ("lost", "ended", "killed", "dropped"):
            events.add(EventKind.ATTACHED, node, "s")
        clock.pass_seconds(60)
        events.add(EventKind.LOST, "lost", "s", Reason.CARRIER_LOST)
        events.add(EventKind.ENDED, "ended", "s", Reason.AGENT_STOPPING)
        events.add(EventKind.ENDED, "dropped", "s", Reason.AGENT_STOPPING)
        events.add(EventKind.FORGOTTEN, "dropped", "")
        clock.pass_seconds(60)
        events.add(EventKind.EXPIRED, "lost", "s", Reason.GRACE_EXPIRED)
        await keeper.flush()
        await keeper.flush()
        await keeper.refresh_last_seen()
    async with opened(tmp_path, clock) as store:
        clock.pass_seconds(60)
        await store.detach_all()
        await store.refresh_last_seen()  # none is, since the start
        known = {node.name: (node.last_seen_at, node.reason) for node in await store.known_nodes()}
    minute = timedelta(minutes=1)
    assert known == {
        "never": (None, None),
        "lost": (began + minute, Reason.GRACE_EXPIRED),
        "ended": (began + minute, Reason.AGENT_STOPPING),
        "killed": (began + 2 * minute, None),
    }


async def test_the_number_of_known_nodes_is_bounded(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock, StoreSettings(tmp_path / "s", keep_nodes=3)) as store:
        events = Events(clock)
        keeper = EventWriter(events, REFUSALS, store)
        for number in range(6):
            clock.pass_seconds(1)
            await store.record(certificate(f"n{number}"))
        clock.pass_seconds(1)
        events.add(EventKind.ATTACHED, "n0", "s")
        await keeper.flush()
        while await store.prune():
            pass
        assert [node.name for node in await store.known_nodes()] == ["n3", "n4", "n5", "n0"]


async def test_the_start_records_how_the_previous_run_ended(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as store:
        events = Events(clock)
        keeper = EventWriter(events, REFUSALS, store)
        assert "run before" not in await describe_start(store)
        events.add(EventKind.SERVER_STARTED, "", "")
        await keeper.flush()
        assert "ended without a stop" in await describe_start(store)
        clock.pass_seconds(60)
        events.add(EventKind.SERVER_STOPPED, "", "")
        await keeper.flush()
        assert (await describe_start(store)).endswith("the run before was stopped at 2027-01-01 00:01:00Z")
