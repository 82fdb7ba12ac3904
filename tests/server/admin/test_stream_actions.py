from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.store.test_stream_log import AT, record
from tests.support.fakes.opened_store import opened
from tunnel_core.reasons import Refused
from tunnel_server.admin.arguments import Arguments
from tunnel_server.admin.stream_actions import recorded_streams


async def test_records_of_streams_are_selected_and_the_lost_ones_counted(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.streams.add([record(), record("lee", entrance="web"), record("lee", at=AT + 5)])
        store.streams.count_lost(3)
        given = {"user": "lee", "entrance": "web", "since_ms": str(AT), "until_ms": str(AT + 5), "most": "9"}
        answer = await recorded_streams(store, Arguments(given), "uid-0")
        assert [one["number"] for one in answer["streams"]] == [2]
        assert answer["lost"] == store.audit_dropped == 3
        with pytest.raises(Refused, match="'smtp' is not an entrance"):
            await recorded_streams(store, Arguments({"entrance": "smtp"}), "uid-0")
        with pytest.raises(Refused, match="is not an argument"):
            await recorded_streams(store, Arguments({"x": "y"}), "uid-0")
