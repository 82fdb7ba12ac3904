"""Grants through the store: rows, the difference of two sets, and what a hand changed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fakes.opened_store import opened
from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.grants import Grant
from tunnel_server.store import grants
from tunnel_server.store.audit import AuditQuery
from tunnel_server.store.grants import difference, fingerprint


def table(user: str = "kim", **more: Any) -> dict[str, Any]:
    return {"users": [user], "verbs": ["connect"], "nodes": ["shop-*"], "targets": ["ssh", "22"], **more}


def grant(name: str, user: str = "kim") -> Grant:
    return Grant.parse({"id": name, **table(user)})


async def test_a_grant_is_stored_as_it_was_given_and_acts_at_once(tmp_path: Path) -> None:
    given = {
        **table(id="ops", note="on call"),
        "groups": ["field service"],
        "nodes": ["site=hamburg,tier=1", "edge1"],
        "verbs": ["http", "connect"],
    }
    async with opened(tmp_path) as store:
        made, is_new = await store.access.add_grant(given, "uid-0")
        assert is_new
        assert store.access.rules.grants["ops"] == made == Grant.parse(given)
    async with opened(tmp_path) as store:
        assert store.access.rules.grants["ops"] == made
        shown = (await store.access.grants())[-1]
        assert (shown["id"], shown["created_by"], shown["changed"]) == ("ops", "uid-0", None)
        assert await store.access.remove_grants(["ops"], "uid-0") == (made,)
        assert "ops" not in store.access.rules.grants
        kinds = [(line["kind"], line["detail"]) for line in await store.audit(AuditQuery())]
        sentence = "ops: kim, group field service may connect, http on edge1, site=hamburg,tier=1 to 22, ssh"
        assert kinds == [("grant_added", sentence), ("grant_removed", sentence)]


async def test_ids_come_from_the_first_name_and_a_repetition_adds_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        add = store.access.add_grant
        assert (await add(table("kim@example.com"), "uid-0"))[0].id == "kim-example-com-1"
        again, is_new = await add(table("kim@example.com", note="again"), "uid-0")
        assert (again.id, is_new) == ("kim-example-com-1", False)
        other = {**table("kim@example.com"), "nodes": ["*"]}
        assert (await add(other, "uid-0"))[0].id == "kim-example-com-2"
        assert (await add(table("*"), "uid-0"))[0].id == "everyone-1"
        with pytest.raises(Refused, match="another grant has the id everyone-1"):
            await add(table(id="everyone-1"), "uid-0")
        with pytest.raises(Refused, match="has no verbs"):
            await add({**table(), "verbs": []}, "uid-0")
        assert len(await store.access.grants()) == 3


async def test_a_removal_of_an_unknown_grant_removes_none(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.access.add_grant(table(), "uid-0")
        with pytest.raises(Refused) as caught:
            await store.access.remove_grants(["kim-1", "kim-2"], "uid-0")
        assert caught.value.reason is Reason.NOT_FOUND
        assert "kim-1" in store.access.rules.grants


async def test_apply_changes_what_differs_and_a_second_time_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        access = store.access
        for name in ("same", "other", "old"):
            await access.add_grant({"id": name, **table()}, "uid-0")
        wanted = (grant("same"), grant("other", "lee"), grant("new"))
        preview, print_before = await access.preview_grants(wanted, prune=True)
        assert "new" not in access.rules.grants
        changes = await access.apply_grants(wanted, prune=True, expected=print_before, by="uid-1")
        assert changes == preview
        assert [one.id for one in changes.added] == ["new"]
        assert [after.users for _, after in changes.changed] == [("lee",)]
        assert {one.id for one in changes.removed} == {"old"}
        assert changes.unchanged == 1
        assert set(access.rules.grants.values()) == set(wanted)
        [changed] = [line for line in await store.audit(AuditQuery()) if line["kind"] == "grant_changed"]
        assert changed["detail"].startswith("other: lee may ")
        assert "before: kim may " in changed["detail"]
        with pytest.raises(Refused, match="changed meanwhile"):
            await access.apply_grants(wanted, prune=True, expected=print_before, by="uid-1")
        again = await access.apply_grants(wanted, prune=True, expected="", by="uid-1")
        assert again.is_empty
        without_prune, _ = await access.preview_grants((grant("new"),), prune=False)
        assert without_prune.is_empty
        [shown] = [one for one in await access.grants() if one["id"] == "other"]
        assert shown["changed_by"] == "uid-1"


@given(
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["kim", "lee"])),
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["kim", "lee"])),
    st.booleans(),
)
def test_a_difference_leads_from_one_set_to_the_other(
    before: dict[str, str], after: dict[str, str], prune: bool
) -> None:
    stored = [grant(name, user) for name, user in before.items()]
    wanted = [grant(name, user) for name, user in after.items()]
    changes = difference(stored, wanted, prune=prune)
    result = {one.id: one for one in stored}
    for name, now in changes.by_id().items():
        if now is None:
            del result[name]
        else:
            result[name] = now
    expected = after if prune else before | after
    assert {name: one.users[0] for name, one in result.items()} == expected
    assert len(changes.added) + len(changes.changed) + changes.unchanged == len(after)
    assert (fingerprint(stored) == fingerprint(result.values())) == changes.is_empty


async def test_a_row_that_a_hand_broke_allows_nothing_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as store:
        await store.access.add_grant(table(), "uid-0")
        await store.access.add_grant(table("lee"), "uid-0")
        store._connection.execute("UPDATE grants SET verbs = 'fly' WHERE id = 'kim-1'")
    with caplog.at_level(logging.ERROR):
        async with opened(tmp_path) as store:
            assert {"kim-1", "lee-1"} & store.access.rules.grants.keys() == {"lee-1"}
    assert "a stored grant is not valid and allows nothing" in caplog.text


async def test_there_is_a_most_of_grants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "MAX_GRANTS", 2)
    async with opened(tmp_path) as store:
        await store.access.add_grant(table(), "uid-0")
        await store.access.add_grant(table("robin"), "uid-0")
        with pytest.raises(Refused, match="there would be 3 grants; 2 are allowed"):
            await store.access.add_grant(table("lee"), "uid-0")
        assert "lee-1" not in store.access.rules.grants
        assert len(await store.access.grants()) == 2
