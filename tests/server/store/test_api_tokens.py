"""API tokens through the store: no secret on the disk, last uses, and their end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fakes.opened_store import Clock, opened
from tunnel_core.reasons import Refused
from tunnel_server.auth.access_rules import UserKind
from tunnel_server.auth.api_tokens import digest_of, format_api_token
from tunnel_server.store import api_tokens
from tunnel_server.store.api_tokens import NewApiToken
from tunnel_server.store.store import FILE, Store
from tunnel_server.store.timestamps import to_ms


def new(
    number: int = 1, *, name: str = "ci", user: str = "ci", ttl: float = 3600.0
) -> tuple[str, NewApiToken]:
    text = format_api_token(bytes([number]) * 32)
    digest = digest_of(text)
    assert digest is not None
    return text, NewApiToken(f"id{number}", user, name, digest, ttl)


async def add_users(store: Store) -> None:
    for name in ("ci", "other"):
        await store.access.add_user(name, UserKind.SCRIPT, "", "uid-0")


async def test_a_token_works_at_once_and_after_a_restart_and_its_secret_is_nowhere(tmp_path: Path) -> None:
    clock = Clock()
    text, token = new()
    async with opened(tmp_path, clock) as store:
        await add_users(store)
        await store.access.create_api_token(token, "uid-0")
        assert store.access.api_tokens.find(text, to_ms(clock.now)) is not None
    assert text.encode() not in (tmp_path / FILE).read_bytes()
    async with opened(tmp_path, clock) as store:
        found = store.access.api_tokens.find(text, to_ms(clock.now))
        assert found is not None
        assert (found.user, found.name) == ("ci", "ci")
        await store.access.revoke_api_token("id1", "uid-0")
        assert store.access.api_tokens.find(text, to_ms(clock.now)) is None
        assert (await store.access.api_token("id1"))["state"] == "revoked"
    async with opened(tmp_path, clock) as store:
        assert store.access.api_tokens.find(text, to_ms(clock.now)) is None


async def test_last_uses_are_written_together_and_at_the_end(tmp_path: Path) -> None:
    clock = Clock()
    text, token = new()
    async with opened(tmp_path, clock) as store:
        await add_users(store)
        await store.access.create_api_token(token, "uid-0")
        before = store._connection.total_changes
        for _ in range(100):
            clock.pass_seconds(1)
            assert store.access.api_tokens.find(text, to_ms(clock.now)) is not None
        assert store._connection.total_changes == before, "a use writes nothing"
        [listed] = await store.access.api_token_list("ci")
        assert listed["last_used"] == "2027-01-01T00:01:40.000Z"
        clock.pass_seconds(5)
        store.access.api_tokens.find(text, to_ms(clock.now))
    async with opened(tmp_path, clock) as store:
        [listed] = await store.access.api_token_list()
        assert listed["last_used"] == "2027-01-01T00:01:45.000Z"


async def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_tokens, "MAX_PER_USER", 2)
    clock = Clock()
    async with opened(tmp_path, clock) as store:
        create = store.access.create_api_token
        await add_users(store)
        await create(new(1, ttl=60)[1], "uid-0")
        with pytest.raises(Refused, match="has a valid token named ci"):
            await create(new(2)[1], "uid-0")
        await create(new(3, user="other")[1], "uid-0")
        await create(new(4, name="second")[1], "uid-0")
        with pytest.raises(Refused, match="has 2 valid tokens"):
            await create(new(5, name="third")[1], "uid-0")
        with pytest.raises(Refused, match="no user lee is known here"):
            await create(new(6, user="lee")[1], "uid-0")
        await store.access.set_disabled("other", True, "uid-0")
        with pytest.raises(Refused, match="qanat-server user enable other"):
            await create(new(7, user="other", name="x")[1], "uid-0")
        with pytest.raises(Refused, match="api-token list"):
            await store.access.revoke_api_token("id9", "uid-0")
        clock.pass_seconds(60)
        await create(new(8)[1], "uid-0")  # the first has expired: its name and its place are free
        states = [(one["id"], one["state"]) for one in await store.access.api_token_list("ci")]
        assert states == [("id1", "expired"), ("id4", "valid"), ("id8", "valid")]


async def test_expired_tokens_are_removed_after_a_while(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as store:
        await add_users(store)
        await store.access.create_api_token(new(1, ttl=60)[1], "uid-0")
        await store.access.create_api_token(new(2, name="long", ttl=365 * 86400)[1], "uid-0")
        clock.pass_seconds(91 * 86400)
        await store.prune()
        assert [one["id"] for one in await store.access.api_token_list()] == ["id2"]
