from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes.opened_store import Clock, opened
from tunnel_server.store.stream_log import StreamQuery, StreamRecord
from tunnel_server.store.timestamps import to_ms

AT = to_ms(Clock().now)


def record(user: str = "kim", *, at: int = AT, entrance: str = "connect", node: str = "n1") -> StreamRecord:
    return StreamRecord(
        *(
            at - 1500,
            at,
            "0a-1",
            user,
            node,
            "ssh",
            "127.0.0.1:22",
            entrance,
            "10.0.0.1:5",
            "g7",
            "done",
            7,
            9,
        )
    )


async def test_a_record_is_read_back_as_json(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.streams.add([record()])
        assert await store.streams.find(StreamQuery()) == [
            {
                "number": 1,
                "opened": "2026-12-31T23:59:58.500Z",
                "ended": "2027-01-01T00:00:00.000Z",
                "seconds": 1.5,
                "stream": "0a-1",
                "user": "kim",
                "node": "n1",
                "target": "ssh",
                "address": "127.0.0.1:22",
                "entrance": "connect",
                "source": "10.0.0.1:5",
                "grant": "g7",
                "reason": "done",
                "bytes_to_target": 7,
                "bytes_to_user": 9,
            }
        ]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({}, [1, 2, 3]),
        ({"user": "lee"}, [2]),
        ({"node": "n2"}, [3]),
        ({"entrance": "web"}, [2]),
        ({"since": AT}, [2, 3]),
        ({"until": AT}, [1]),
        ({"before": 3, "most": 1}, [2]),
    ],
)
async def test_records_are_selected(tmp_path: Path, wanted: dict[str, Any], numbers: list[int]) -> None:
    async with opened(tmp_path) as store:
        await store.streams.add(
            [record(at=AT - 1), record("lee", entrance="web"), record(node="n2", at=AT + 1)]
        )
        found = await store.streams.find(StreamQuery(**wanted))
        assert [one["number"] for one in found] == numbers
