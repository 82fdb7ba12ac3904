"""Users and groups through the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fakes.opened_store import certificate, opened
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.access_rules import Account, UserKind
from tunnel_server.store.audit import AuditQuery
from tunnel_server.store.store import Store


async def refusal(act: object) -> str:
    with pytest.raises(Refused) as caught:
        await act  # type: ignore[misc]
    return caught.value.detail


async def lines(store: Store) -> list[tuple[str, str, str]]:
    found = await store.audit(AuditQuery())
    return [(line["kind"], line.get("user", ""), line.get("detail", "")) for line in found]


async def test_users_come_from_certificates_and_from_an_administrator(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.record(certificate("kim", role=Role.USER, by="uid-0"))
        await store.record(certificate("kim", role=Role.USER, by="uid-0"))
        await store.access.add_user("ci", UserKind.SCRIPT, "nightly", "uid-0")
        assert "exists already" in await refusal(store.access.add_user("kim", UserKind.PERSON, "", "uid-0"))
        users = await store.access.users()
        assert [(one["name"], one["kind"], one["certificates"], one["note"]) for one in users] == [
            ("ci", "script", 0, "nightly"),
            ("kim", "person", 2, ""),
        ]
        assert (await lines(store))[-1] == ("user_added", "ci", "script, nightly")


async def test_a_disabled_user_is_in_memory_at_once_and_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.access.add_user("kim", UserKind.PERSON, "", "uid-0")
        assert not store.access.rules.accounts["kim"].is_disabled
        for _ in range(2):
            await store.access.set_disabled("kim", True, "uid-0")
        assert store.access.rules.accounts["kim"] == Account("kim", is_disabled=True)
        assert [kind for kind, *_ in await lines(store)] == ["user_added", "user_disabled"]
        near = await refusal(store.access.set_disabled("kin", True, "uid-0"))
        assert near == "no user kin is known here; did you mean kim?"
    async with opened(tmp_path) as store:
        assert store.access.rules.accounts["kim"].is_disabled
        await store.access.set_disabled("kim", False, "uid-0")
        assert not store.access.rules.accounts["kim"].is_disabled


async def test_a_password_hash_is_stored_for_its_user_and_shown_nowhere(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.access.add_user("kim", UserKind.PERSON, "", "uid-0")
        assert await store.access.password_hash("kim") is None
        assert await store.access.password_hash("lee") is None
        await store.access.set_password("kim", "$hash", "uid-0")
        assert await store.access.password_hash("kim") == "$hash"
        [shown] = await store.access.users()
        assert shown["password_set"] is not None
        assert "$hash" not in f"{shown}{await lines(store)}"
        await store.access.set_password("kim", None, "uid-0")
        assert await store.access.password_hash("kim") is None
        assert [detail for kind, _, detail in await lines(store) if kind == "password_set"] == ["", "removed"]


async def test_groups_have_members_in_memory_and_on_the_disk(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        access = store.access
        for name in ("kim", "lee"):
            await access.add_user(name, UserKind.PERSON, "", "uid-0")
        await access.add_group("ops", "on call", "uid-0")
        assert "exists already" in await refusal(access.add_group("ops", "", "uid-0"))
        assert await access.change_members("ops", ["kim", "lee", "kim"], member=True, by="uid-0") == [
            "kim",
            "lee",
        ]
        assert await access.change_members("ops", ["kim"], member=True, by="uid-0") == []
        assert access.rules.groups_of("kim") == {"ops"}
        assert await access.change_members("ops", ["lee"], member=False, by="uid-0") == ["lee"]
        assert access.rules.groups_of("lee") == set()
        assert [(one["name"], one["members"]) for one in await access.groups()] == [("ops", ["kim"])]
        with pytest.raises(Refused) as caught:
            await access.change_members("ops", ["lee", "nobody"], member=True, by="uid-0")
        assert caught.value.reason is Reason.NOT_FOUND
        assert await access.members_of("ops") == ["kim"], "all or nothing"
    async with opened(tmp_path) as store:
        assert store.access.rules.groups_of("kim") == {"ops"}
        assert await store.access.remove_group("ops", "uid-0") == ["kim"]
        assert store.access.rules.groups_of("kim") == set()
        assert "did you mean" not in await refusal(store.access.remove_group("ops", "uid-0"))
        assert (await lines(store))[-1] == ("group_removed", "", "group ops: kim")
