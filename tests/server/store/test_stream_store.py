from __future__ import annotations

from pathlib import Path

from tests.server.store.test_stream_log import AT, record
from tests.support.fakes.opened_store import Clock, opened
from tunnel_server.store.store import FILE, StoreSettings
from tunnel_server.store.stream_log import StreamQuery
from tunnel_server.store.stream_store import StreamSettings
from tunnel_server.store.timestamps import DAY


async def test_old_records_go_by_the_days_of_their_entrance(tmp_path: Path) -> None:
    clock = Clock()
    settings = StoreSettings(tmp_path / FILE, streams=StreamSettings(days=90, keep_days={"web": 7}))
    async with opened(tmp_path, clock, settings) as store:
        await store.streams.add([record(), record(entrance="web"), record(entrance="tcp")])
        clock.pass_seconds(8 * 24 * 3600)
        await store.prune()
        assert [one["entrance"] for one in await store.streams.find(StreamQuery())] == ["connect", "tcp"]
        clock.pass_seconds(90 * 24 * 3600)
        await store.prune()
        assert not await store.streams.find(StreamQuery())


async def test_a_user_pushes_out_own_records_beyond_a_quarter_and_the_oldest_go_beyond_all(
    tmp_path: Path,
) -> None:
    settings = StoreSettings(tmp_path / FILE, streams=StreamSettings(keep=40))
    async with opened(tmp_path, None, settings) as store:
        await store.streams.add([record("lee")])
        await store.streams.add([record("kim") for _ in range(100)])
        await store.prune()
        users = [one["user"] for one in await store.streams.find(StreamQuery())]
        assert users.count("kim") == 10 and users.count("lee") == 1
        await store.streams.add([record(f"u{number}") for number in range(100)])
        await store.prune()
        assert [one["user"] for one in await store.streams.find(StreamQuery())] == [
            f"u{n}" for n in range(60, 100)
        ]


async def test_a_flood_is_pruned_while_it_is_written(tmp_path: Path) -> None:
    settings = StoreSettings(tmp_path / FILE, streams=StreamSettings(keep=400))
    async with opened(tmp_path, None, settings) as store:
        for _ in range(5):
            await store.streams.add([record(f"u{number % 8}", at=AT - DAY) for number in range(1000)])
        assert len(await store.streams.find(StreamQuery())) == 400
