"""What befell the nodes, on its way from the ring to the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.opened import Clock, opened
from tunnel_core.reasons import Reason
from tunnel_server import keeping
from tunnel_server.events import Events, Kind
from tunnel_server.keeping import EventKeeper
from tunnel_server.refusals import Refusals
from tunnel_server.store.audit import Question
from tunnel_server.store.database import StoreError

REFUSALS = Refusals(lambda line: None, lambda: 0.0)


async def test_each_event_is_kept_once_and_a_takeover_is_audited(tmp_path: Path) -> None:
    events = Events(Clock())
    events.add(Kind.ATTACHED, "before", "s0")
    async with opened(tmp_path) as store:
        keeper = EventKeeper(events, REFUSALS, store)
        events.add(Kind.ATTACHED, "edge1", "s1")
        events.add(Kind.TAKEN_OVER, "edge1", "s1", Reason.TAKEN_OVER, "from 192.0.2.1")
        events.add(Kind.DUPLICATE, "edge1", "s2")
        await keeper.flush()
        await keeper.flush()
        assert [event.kind for event in await store.events()] == [
            *(Kind.ATTACHED, Kind.TAKEN_OVER, Kind.DUPLICATE)
        ]
        await store.keep_events([])  # behind the lines of the audit, which nobody waits for
        lines = await store.audit(Question())
        assert [(line["kind"], line["node"], line["detail"]) for line in lines] == [
            ("takeover", "edge1", "taken_over: from 192.0.2.1"),
            ("takeover", "edge1", "duplicate: "),
        ]


async def test_many_events_go_in_pieces_and_while_the_store_fails_they_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_AT_ONCE", 3)
    events = Events(Clock())
    async with opened(tmp_path) as store:
        keeper = EventKeeper(events, REFUSALS, store)
        for number in range(8):
            events.add(Kind.LOST, f"n{number}", "s")

        async def fail(kept: object) -> None:
            raise StoreError(Reason.STORE_FULL)

        with monkeypatch.context() as patch:
            patch.setattr(store, "keep_events", fail)
            await keeper.flush()
        assert await store.events() == []
        await keeper.flush()
        assert [event.node for event in await store.events()] == [f"n{number}" for number in range(8)]
