"""Grants without a command: an upgrade takes nothing away, a new installation gives to its operator alone."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.support.fakes.opened_store import opened
from tunnel_core.config.loader import load
from tunnel_server.auth.grants import Grant, Verb
from tunnel_server.auth.users import LOOPBACK_USER
from tunnel_server.config import ServerConfig
from tunnel_server.store.audit import AuditQuery
from tunnel_server.store.database import open_database
from tunnel_server.store.schema import STEPS
from tunnel_server.store.settings import settings_of
from tunnel_server.store.store import FILE, Store, StoreSettings

BEFORE = STEPS[:4]
"""The tables before grants."""


def old_store(folder: Path, *certificates: tuple[str, str, str]) -> Path:
    """Make a store of before grants, with certificates (role, name, origin)."""
    path = folder / FILE
    with contextlib.closing(open_database(path, steps=BEFORE)) as connection:
        for number, (role, name, origin) in enumerate(certificates):
            connection.execute(
                "INSERT INTO certificates (serial, role, name, key_sha256, root_pin, begins_at, ends_at,"
                " issued_at, origin, token) VALUES (?, ?, ?, '', '', 0, 1, ?, ?, '')",
                (f"a{number}", role, name, 100 + number, origin),
            )
    return path


def who(store: Store) -> dict[str, tuple[str, ...]]:
    return {grant.id: grant.users for grant in store.access.rules.grants.values()}


INIT = ("server", "main", "by_hand")


async def test_every_user_of_the_store_gets_what_he_could_do_before_and_no_more(tmp_path: Path) -> None:
    old_store(
        tmp_path,
        *(INIT, ("user", "operator", "by_hand"), ("user", "kim@x", "by_hand")),
        *(("user", "kim@x", "renewed"), ("node", "edge1", "enrolled")),
    )
    async with opened(tmp_path) as store:
        assert who(store) == {"upgrade-1": ("kim@x",), "upgrade-2": ("operator",)}
        grant = store.access.rules.grants["upgrade-1"]
        assert grant.verbs == {Verb.CONNECT, Verb.HTTP, Verb.API}
        assert (list(map(str, grant.nodes)), list(map(str, grant.targets))) == (["*"], ["*"])
        assert [user["name"] for user in await store.access.users()] == ["kim@x", "operator"]
        await store.access.remove_grants(["upgrade-1"], "uid-0")
    async with opened(tmp_path) as store:
        assert who(store) == {"upgrade-2": ("operator",)}, "an upgrade happens once"


async def test_users_of_the_configuration_get_theirs_at_the_next_opening_once(tmp_path: Path) -> None:
    path = old_store(tmp_path, INIT, ("user", "kim", "by_hand"))
    settings = StoreSettings(path, named_users=("kube-apiserver", "kim", LOOPBACK_USER))
    async with opened(tmp_path, settings=settings) as store:
        assert who(store) == {
            "upgrade-1": ("kim",),
            "upgrade-configured-1": ("kube-apiserver",),
            "upgrade-loopback": ("loopback",),
        }
        assert store.access.rules.grants["upgrade-loopback"].verbs == {Verb.HTTP}
        assert store.access.rules.accounts.keys() == {"kim", "kube-apiserver"}
        kinds = [line["kind"] for line in await store.audit(AuditQuery())]
        assert kinds == ["user_added", "grant_added", "grant_added"]
    later = StoreSettings(path, named_users=("another",), has_strangers=True)
    async with opened(tmp_path, settings=later) as store:
        assert len(who(store)) == 3


async def test_unknown_users_of_another_issuer_keep_their_access(tmp_path: Path) -> None:
    path = old_store(tmp_path, INIT)
    async with opened(tmp_path, settings=StoreSettings(path, has_strangers=True)) as store:
        assert who(store) == {"upgrade-everyone": ("*",)}


async def test_users_of_an_installation_from_before_the_store_keep_their_access(tmp_path: Path) -> None:
    old_store(tmp_path, ("user", "kim", "renewed"), ("server", "main", "renewed"))
    async with opened(tmp_path) as store:
        assert who(store) == {"upgrade-1": ("kim",), "upgrade-everyone": ("*",)}
        assert not store.access.rules.grants["upgrade-everyone"].verbs & {Verb.ADMIN}


@pytest.mark.parametrize("has_strangers", [False, True])
async def test_a_store_that_did_not_exist_gives_access_to_nobody(tmp_path: Path, has_strangers: bool) -> None:
    """A lost store is made anew beside the authority. That must not open every node to every user."""
    settings = StoreSettings(tmp_path / FILE, named_users=("kim", LOOPBACK_USER), has_strangers=has_strangers)
    for _ in range(2):
        async with opened(tmp_path, settings=settings) as store:
            assert who(store) == {}


async def test_a_new_installation_gives_everything_to_the_operator_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.server.commands.test_init import run

    assert run("init", "--name", "localhost", "--data-dir", tmp_path / "d").exit_code == 0
    config = tmp_path / "d" / "server.toml"
    with config.open("a") as file:
        file.write('\n[connect.unix]\npath = "c.sock"\n[[connect.unix.peer]]\nuid = 0\nuser = "peer"\n')
    settings = settings_of(load(config, ServerConfig))
    assert settings.named_users == ("peer", "loopback")
    async with opened(tmp_path, settings=settings) as store:
        assert who(store) == {"operator": ("operator",), "loopback": ("loopback",)}
        assert list(store.access.rules.grants.values())[:1] == [
            Grant.parse(
                {
                    "id": "operator",
                    "users": ["operator"],
                    **{key: ["*"] for key in ("verbs", "nodes", "targets")},
                    "note": "written by init",
                }
            )
        ]
