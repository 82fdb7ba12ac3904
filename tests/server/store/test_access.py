"""The part of the store that knows who may do what: what it says about names, and its regular write."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
import trio.testing

from tests.server.store.test_api_tokens import new
from tests.support.fakes.opened_store import certificate, opened
from tunnel_core.identity import Role
from tunnel_server.auth.access_rules import UserKind
from tunnel_server.auth.grants import Grant
from tunnel_server.store.access import WRITE_USES_SECONDS, AccessStore
from tunnel_server.store.database import Connection, open_database, open_reader
from tunnel_server.store.store import FILE
from tunnel_server.store.transaction import Transaction


async def test_names_of_a_grant_that_nothing_knows_are_named(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.record(certificate("shop-7"))
        await store.record(certificate("kim", role=Role.USER))
        await store.access.add_group("ops", "", "uid-0")
        table = {
            "id": "g",
            "users": ["kim", "kin"],
            "groups": ["ops", "opps"],
            "verbs": ["api"],
            "nodes": ["shop-7", "shop-8", "shop-*", "site=x"],
        }
        assert await store.access.unknown_subjects(Grant.parse(table)) == [
            "no user kin is known here yet",
            "no group opps is known here",
            "no node shop-8 is known here yet",
        ]


async def test_uses_are_written_every_minute_in_one_write(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    writes: list[dict[str, int | None]] = []
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(contextlib.closing(open_database(tmp_path / FILE)))
        reader = stack.enter_context(contextlib.closing(open_reader(tmp_path / FILE)))

        async def write(work: Callable[[Transaction], Any], on_committed: Any = None) -> Any:
            result = work(Transaction(connection, 0, must_audit=True))
            if on_committed is not None:
                on_committed(result)
            rows = connection.execute("SELECT id, last_used_at FROM api_tokens")
            writes.append({row["id"]: row["last_used_at"] for row in rows})
            return result

        async def read(query: Callable[[Connection], Any]) -> Any:
            return query(reader)

        access = AccessStore(write, read, lambda: 0, reader)
        await access.add_user("ci", UserKind.SCRIPT, "", "uid-0")
        (text, token), (other_text, other) = new(1), new(2, name="other")
        for one in (token, other):
            await access.create_api_token(one, "uid-0")
        writes.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(access.write_uses_regularly)
            for at in (7, 8):
                assert access.api_tokens.find(text, at) and access.api_tokens.find(other_text, 5)
            await trio.sleep(WRITE_USES_SECONDS - 1)
            assert writes == []
            await trio.sleep(2 * WRITE_USES_SECONDS)
            assert writes == [{"id1": 8, "id2": 5}], "and nothing while there is no use"
            nursery.cancel_scope.cancel()
