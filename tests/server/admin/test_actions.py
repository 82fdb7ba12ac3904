"""The administrator's requests over HTTP, which only the admin socket accepts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from certs.rotation import RotationStep
from certs.token import parse_token
from certs.x509 import pin_of
from tests.server.commands.test_init import run
from tests.support.fakes.edge import Edge, now, open_edge, receive_all
from tests.support.fakes.opened_store import opened
from tunnel_core.config.loader import load
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_server.admin.actions import Actions
from tunnel_server.admin.arguments import Arguments
from tunnel_server.api.admin import AdminEntrance
from tunnel_server.auth.users import Administrator, User
from tunnel_server.config import ServerConfig
from tunnel_server.listeners.listener import AcceptedConnection, Listener
from tunnel_server.store.settings import settings_of


def administrator(accepted: AcceptedConnection) -> User:
    return Administrator("uid-7", Role.USER, "test.internal")


class Site:
    """An installation whose admin API is served on a port."""

    def __init__(self, edge: Edge, listener: Listener, actions: Actions) -> None:
        self.edge = edge
        self.listener = listener
        self.actions = actions
        self.store = actions.store
        self.rotated = 0

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        stream = await self.edge.dial(self.listener)
        head = f"{method} /api/v1/admin/{path} HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n"
        head += f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        await stream.send_all(head.encode() + body)
        answer = await receive_all(stream)
        first, _, content = answer.partition(b"\r\n\r\n")
        return int(first[9:12]), json.loads(content)

    async def post(self, path: str, **given: object) -> tuple[int, Any]:
        return await self.ask("POST", path, json.dumps(given).encode())


@asynccontextmanager
async def site(folder: Path, *, has_admin: bool = True) -> AsyncIterator[Site]:
    assert run("init", "--name", "tunnel.example.com", "--data-dir", folder / "d").exit_code == 0
    config = load(folder / "d" / "server.toml", ServerConfig)
    async with opened(folder, now, settings_of(config)) as store, open_edge() as edge:  # type: ignore[arg-type]
        made: list[Site] = []

        def count(step: RotationStep, forced: bool) -> None:
            made[0].rotated += 1

        actions = Actions(config, store, count, trio.Lock(), tuple, None)
        sections = [edge.api(), *([AdminEntrance(actions).section()] if has_admin else [])]
        https_entrance = edge.https_entrance(administrator, *sections, entrance="admin")
        made.append(Site(edge, await edge.listen("admin", https_entrance.serve), actions))
        yield made[0]


async def test_a_token_is_made_listed_and_revoked(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        status, made = await here.post("tokens/create", match="shop-*", uses=3, ttl_seconds=60)
        assert status == 200
        token = parse_token(made["token"])
        assert token.id == made["id"]
        assert token.pin == pin_of((tmp_path / "d" / "ca" / "root.pem").read_bytes())
        assert made["servers"] == ["tunnel.example.com:7002"]
        _, listed = await here.ask("GET", "tokens")
        assert [(one["id"], one["match"], one["uses"]) for one in listed["tokens"]] == [
            (token.id, "shop-*", 3)
        ]
        assert made["token"] not in json.dumps(listed)
        assert await here.post("tokens/revoke", id=token.id) == (200, {"revoked": token.id})
        _, audit = await here.ask("GET", "audit?most=10")
        lines = [(line["kind"], line["done_by"]) for line in audit["audit"]]
        assert lines[-2:] == [("token_created", "uid-7"), ("token_revoked", "uid-7")]
        assert token.secret.hex() not in json.dumps(audit)
        assert made["token"] not in json.dumps(audit)


async def test_nodes_users_and_serials_are_revoked(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        for path, given_name, subject in (
            *(
                ("nodes/revoke", {"name": "shop-7", "force": True}, "shop-7"),
                ("users/revoke", {"name": "kim@x", "force": True}, "kim@x"),
            ),
            ("certificates/revoke", {"serial": "0x00:AB:CD", "force": True}, "abcd"),
        ):
            status, answer = await here.post(path, why="lost", **given_name)
            assert (status, answer["revocation"]["subject"]) == (200, subject)
        _, listed = await here.ask("GET", "revocations")
        assert [(one["kind"], one["by"], one["why"]) for one in listed["revocations"]] == [
            (kind, "uid-7", "lost") for kind in ("node", "user", "serial")
        ]


async def test_the_authority_is_shown_and_rotated_and_the_server_informed(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        status, shown = await here.ask("GET", "ca")
        assert (status, shown["state"], shown["next"], shown["trusted"]) == (200, "steady", "add", True)
        status, answer = await here.post("ca/rotate", step="switch")
        assert (status, answer["reason"]) == (409, "rotation_refused")
        status, answer = await here.post("ca/rotate", step="add")
        assert (status, answer["state"], here.rotated) == (200, "added", 1)
        assert [one.split(" (")[0] for one in answer["next_cuts_off"]] == ["user operator"]
        _, audit = await here.ask("GET", "audit?kind=ca_rotated")
        assert [line["detail"] for line in audit["audit"]] == ["add"]


@pytest.mark.parametrize(
    ("path", "given_body", "sentence"),
    [
        ("tokens/create", {}, "give either --node NAME or --match PATTERN"),
        ("tokens/create", {"node": "a", "match": "a*"}, "give either --node NAME or --match PATTERN"),
        ("tokens/create", {"node": "A b"}, "not a node's name"),
        ("tokens/create", {"node": "a", "uses": 2}, "one use"),
        ("tokens/create", {"match": "a"}, "not a pattern"),
        ("tokens/create", {"node": "a", "ttl_seconds": 0}, "from 1 to"),
        ("tokens/create", {"node": "a", "ttl_seconds": True}, "must be a number"),
        ("tokens/create", {"match": "a*", "uses": 1.5}, "whole number"),
        ("tokens/create", {"node": "a", "more": 1}, "'more' is not an argument"),
        ("nodes/revoke", {}, "name is missing"),
        ("nodes/revoke", {"name": "../x"}, "is not a node name"),
        ("users/revoke", {"name": 7}, "must be a text"),
        ("certificates/revoke", {"serial": "xyz"}, "not a certificate's serial"),
        ("certificates/record", {"chain": "hello"}, "cannot be read"),
        ("ca/rotate", {"step": "all"}, "not a step of a rotation"),
        ("ca/rotate", {"step": "add", "force": "yes"}, "must be true or false"),
    ],
)
async def test_wrong_arguments_are_refused_and_nothing_is_done(
    tmp_path: Path, path: str, given_body: dict[str, object], sentence: str
) -> None:
    async with site(tmp_path) as here:
        before = await here.ask("GET", "audit")
        status, answer = await here.post(path, **given_body)
        assert (status, answer["reason"]) == (400, "bad_request")
        assert sentence in answer["detail"]
        assert await here.ask("GET", "audit") == before


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "tokens/create", b"", 405),
        ("POST", "tokens", b"{}", 405),
        ("DELETE", "tokens", b"", 405),
        ("GET", "nothing", b"", 404),
        ("GET", "", b"", 404),
        ("POST", "tokens/create", b"[]", 400),
        ("POST", "tokens/create", b"{", 400),
        ("POST", "tokens/create", b"\xff", 400),
        ("POST", "tokens/create", b"[" * 60_000, 400),
        ("POST", "tokens/create", b" " * 70_000, 400),
        ("GET", "audit?kind=theft", b"", 400),
        ("GET", "audit?node=a&node=b", b"", 400),
        ("GET", "audit?" + "&".join(f"a{n}=1" for n in range(30)), b"", 400),
    ],
)
async def test_unknown_administration_requests(
    tmp_path: Path, method: str, path: str, body: bytes, status: int
) -> None:
    async with site(tmp_path) as here:
        found, answer = await here.ask(method, path, body)
        assert (found, answer["reason"] != "internal_error") == (status, True)


async def test_a_listener_without_the_entrance_knows_nothing_of_it(tmp_path: Path) -> None:
    async with site(tmp_path, has_admin=False) as here:
        for method, path in (("GET", "tokens"), ("POST", "nodes/revoke")):
            status, answer = await here.ask(method, path, b"")
            assert (status, answer["reason"]) == (404, "not_found")
        assert await here.store.revocations() == []


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers() | st.none(), max_size=4))
def test_any_arguments_are_taken_or_refused(given_values: dict[str, object]) -> None:
    arguments = Arguments(given_values)
    try:
        arguments.text("a", "")
        arguments.number("b", 1, least=0, most=9)
        arguments.flag("c")
        arguments.done()
        assert not given_values.keys() - {"a", "b", "c"}
    except Refused as refused:
        assert refused.reason is Reason.BAD_REQUEST
