"""What a restore would allow again, as commands."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from pathlib import Path

from tests.server.store.test_api_tokens import add_users, new
from tests.support.fakes.opened_store import Clock, opened
from tunnel_server.auth.grants import Grant
from tunnel_server.backup.lost_access import is_before_grants, lost_restrictions
from tunnel_server.store.database import copy_database, open_database, open_reader
from tunnel_server.store.schema import STEPS
from tunnel_server.store.store import FILE

GRANT = {"users": ["ci"], "verbs": ["admin"]}


async def test_what_was_taken_away_since_is_named_and_nothing_else(tmp_path: Path) -> None:
    backup, old = tmp_path / "backup.db", tmp_path / FILE
    async with opened(tmp_path) as store:
        access = store.access
        await add_users(store)
        for name in ("ops team", "still"):
            await access.add_group(name, "", "uid-0")
            await access.change_members(name, ["ci", "other"], member=True, by="uid-0")
        for name in ("gone", "back", "stays"):
            await access.add_grant({"id": name, **GRANT, "note": name, "groups": [name]}, "uid-0")
        for number, name in enumerate(("a", "b"), 1):
            await access.create_api_token(new(number, name=name)[1], "uid-0")
        copy_database(store._reader, backup)

        await access.remove_grants(["gone", "back"], "uid-0")
        await access.add_grant({"id": "back", **GRANT}, "uid-0")
        await access.set_disabled("ci", True, "uid-0")
        await access.revoke_api_token("id1", "uid-0")
        await access.change_members("ops team", ["other"], member=False, by="uid-0")
        await access.change_members("still", ["other"], member=False, by="uid-0")
        await access.change_members("still", ["other"], member=True, by="uid-0")
    found = lost_restrictions(old, backup)
    assert [shlex.split(command)[1:] for command in found] == [
        ["grant", "remove", "gone", "--yes"],
        ["user", "disable", "ci", "--yes"],
        ["api-token", "revoke", "id1", "--yes"],
        ["group", "remove-member", "ops team", "other"],
    ]
    assert lost_restrictions(backup, old) == [], "what is newer in the restored store restricts more"
    shutil.copy(backup, tmp_path / "same.db")
    assert lost_restrictions(tmp_path / "same.db", backup) == []


async def test_narrowed_grants_removed_groups_and_lost_labels_are_named(tmp_path: Path) -> None:
    backup, old, clock = tmp_path / "backup.db", tmp_path / FILE, Clock()
    wide = {"verbs": ["connect"], "nodes": ["*"], "targets": ["22", "80"], "users": ["ci"]}
    async with opened(tmp_path, clock) as store:
        access = store.access
        for name in ("narrow", "wider", "same"):
            await access.add_grant({"id": name, **wide}, "uid-0")
        for name in ("field: north", "kept"):
            await access.add_group(name, "", "uid-0")
        await access.label_node("n1", {"site": "a", "tier": "1", "rack": "7"}, "uid-0", force=True)
        copy_database(store._reader, backup)
        clock.pass_seconds(60)
        narrow = Grant.parse({"id": "narrow", **wide, "nodes": ["shop-*"], "note": "since May"})
        wider = Grant.parse({"id": "wider", **wide, "targets": ["*"]})
        await access.apply_grants((narrow, wider), prune=False, expected="", by="uid-0")
        await access.remove_group("field: north", "uid-0")
        await access.label_node("n1", {"site": None, "tier": "2"}, "uid-0", force=False)
    assert [shlex.split(command)[1:] for command in lost_restrictions(old, backup)] == [
        ["grant", "remove", "narrow", "--yes"],
        [
            *("grant", "add", "--id", "narrow", "--user", "ci", "--verb", "connect", "--node", "shop-*"),
            *("--target", "22", "--target", "80", "--note", "since May"),
        ],
        ["group", "remove", "field: north", "--yes"],
        ["node", "label", "n1", "site-", "--force"],
        ["node", "label", "n1", "tier=2", "--force"],
    ]
    assert lost_restrictions(backup, old) == [], "what is newer in the restored store stays"


def test_a_store_of_before_grants_is_known(tmp_path: Path) -> None:
    before, now = tmp_path / "before.db", tmp_path / "now.db"
    open_database(before, steps=STEPS[:4]).close()
    open_database(now).close()
    assert [is_before_grants(path) for path in (before, now, None)] == [True, False, False]


async def test_another_installation_a_damaged_store_and_one_of_before_grants_have_none(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as store:
        await add_users(store)
        await store.access.add_grant(GRANT, "uid-0")
    fresh, before = tmp_path / "fresh.db", tmp_path / "before.db"
    open_database(fresh).close()
    with contextlib.closing(open_database(before, steps=STEPS[:4])):
        pass
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"x" * 5000)
    for old in (fresh, before, damaged, tmp_path / "none"):
        assert lost_restrictions(old, tmp_path / FILE) == []
    assert lost_restrictions(tmp_path / FILE, before) == []
    assert lost_restrictions(tmp_path / FILE, None) == []
    open_reader(tmp_path / FILE).close()
