"""Actions on users, groups, grants, API tokens and labels: what they answer, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fakes.opened_store import opened
from tunnel_core.reasons import Reason, Refused
from tunnel_server.admin.access_actions import ACCESS_READS, ACCESS_WRITES, MAX_API_TOKEN_SECONDS
from tunnel_server.admin.arguments import Arguments
from tunnel_server.auth.passwords import _NOBODY
from tunnel_server.store.audit import AuditQuery
from tunnel_server.store.store import Store

GRANT = {"users": ["kim"], "verbs": ["http"], "nodes": ["shop-*"], "targets": ["flows"]}


async def do(store: Store, path: str, **given: Any) -> dict[str, Any]:
    action = (ACCESS_READS | ACCESS_WRITES)[path]
    answer: dict[str, Any] = json.loads(json.dumps(await action(store, Arguments(given), "uid-7")))
    return answer


async def test_users_groups_and_their_grants(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        added = await do(store, "users/add", name="kim", note="van 3")
        assert added == {"added": "kim", "kind": "person", "grants": []}
        assert (await do(store, "users/add", name="ci", script=True))["kind"] == "script"
        assert await do(store, "groups/add", group="field service") == {"added": "field service"}
        changed = await do(store, "groups/add-members", group="field service", users=["kim"])
        assert changed == {"group": "field service", "changed": ["kim"], "members": ["kim"]}
        made = await do(store, "grants/add", grant={**GRANT, "users": [], "groups": ["field service"]})
        assert (made["again"], made["unknown"]) == (False, [])
        assert made["text"] == "group field service may http on shop-* to flows"
        assert (await do(store, "users/access", name="kim"))["grants"] == ["field-service-1"]
        assert (await do(store, "users/access", name="ci"))["grants"] == []
        await do(store, "groups/remove-members", group="field service", users=["kim"])
        assert (await do(store, "users/access", name="kim"))["grants"] == []
        assert (await do(store, "groups"))["groups"][0]["members"] == []
        assert await do(store, "groups/remove", group="field service") == {
            "removed": "field service",
            "members": [],
        }
        assert await do(store, "users/disable", name="kim") == {
            "name": "kim",
            "disabled": True,
            "again": False,
        }
        assert (await do(store, "users/disable", name="kim"))["again"]
        assert (await do(store, "users"))["users"][1]["disabled"] is not None
        assert not (await do(store, "users/enable", name="kim"))["again"]


async def test_grants_are_previewed_and_applied(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.access.add_grant({"id": "old", **GRANT}, "uid-0")
        wanted = {"document": {"grant": [{"id": "a", **GRANT}]}, "prune": True}
        preview = await do(store, "grants/apply/preview", **wanted)
        assert [one["id"] for one in preview["added"]] == ["a"]
        assert [one["id"] for one in preview["removed"]] == ["old"]
        assert "a" not in store.access.rules.grants
        fingerprint = preview.pop("fingerprint")
        assert await do(store, "grants/apply", **wanted, fingerprint=fingerprint) == preview
        assert list(store.access.rules.grants) == ["a"]
        assert [one["id"] for one in (await do(store, "grants"))["grants"]] == ["a"]
        removes = await do(store, "grants/remove/preview", ids=["a", "a"])
        assert [one["text"] for one in removes["removes"]] == ["kim may http on shop-* to flows"]
        assert len((await do(store, "grants/remove", ids=["a", "a"]))["removed"]) == 1
        assert not store.access.rules.grants


async def test_an_api_token_is_shown_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await do(store, "users/add", name="ci", script=True)
        await store.access.add_grant({"id": "everyone", **GRANT, "users": ["*"]}, "uid-0")
        made = await do(store, "api-tokens/create", user="ci", name="build 3", ttl_seconds=3600)
        assert made["expires"] == "2027-01-01T01:00:00.000Z"
        assert made["grants"] == ["everyone"]
        listed = await do(store, "api-tokens")
        [shown] = listed["api_tokens"]
        assert (shown["id"], shown["user"], shown["name"], shown["state"]) == (
            *(made["id"], "ci", "build 3"),
            "valid",
        )
        assert shown == (await do(store, "api-token", id=made["id"]))["api_token"]
        audit = await store.audit(AuditQuery())
        assert made["token"] not in json.dumps([listed, audit])
        assert await do(store, "api-tokens/revoke", id=made["id"]) == {"revoked": made["id"]}
        lines = [
            (line["kind"], line.get("token"), line["done_by"]) for line in await store.audit(AuditQuery())
        ]
        assert lines[-2:] == [
            (kind, made["id"], "uid-7") for kind in ("api_token_created", "api_token_revoked")
        ]


async def test_labels(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        answer = await do(store, "nodes/label", name="shop-7", labels=["a=b", "c=d"], force=True)
        assert answer == {"node": "shop-7", "labels": {"a": "b", "c": "d"}, "changed": True}
        answer = await do(store, "nodes/label", name="shop-7", labels=["c-", "x-"])
        assert (answer["labels"], answer["changed"]) == ({"a": "b"}, True)
        assert not (await do(store, "nodes/label", name="shop-7", labels=["a=b"]))["changed"]
        assert await do(store, "labels") == {"labels": {"shop-7": {"a": "b"}}}


@pytest.mark.parametrize(
    ("path", "given_arguments", "sentence"),
    [
        ("users/add", {"name": "Kim X"}, "is not a user name"),
        ("users/add", {"name": "kim", "note": "a\nb"}, "note is not one printable line"),
        ("users/add", {"name": "kim", "password": "x"}, "'password' is not an argument"),
        ("users/password", {"name": "kim"}, "give either hash or remove"),
        ("users/password", {"name": "kim", "hash": _NOBODY, "remove": True}, "give either hash or remove"),
        ("users/password", {"name": "kim", "hash": "secret"}, "not an argon2id hash"),
        ("groups/add", {"group": "-x"}, "is not a group's name"),
        ("groups/add-members", {"group": "x", "users": "kim"}, "must be a list"),
        ("groups/add-members", {"group": "x", "users": []}, "must be a list of 1 to 1000"),
        ("groups/add-members", {"group": "x", "users": [1]}, "must be a list of texts"),
        ("grants/add", {"grant": []}, "grant must be a table"),
        ("grants/add", {"grant": {**GRANT, "verbs": ["exec"]}}, "raw connect cannot tell exec from logs"),
        ("grants/add", {"grant": {**GRANT, "note": 1}}, "note"),
        ("grants/add", {"grant": {"groups": [["x"]], "users": [{}]}}, "not a text in quotes"),
        ("grants/add", {"grant": {"users": 5}}, "is not a list"),
        ("grants/apply", {"document": {"grants": []}}, "'grants' is unknown here"),
        ("grants/remove", {"ids": ["nothing"]}, "there is no grant 'nothing'"),
        ("api-tokens/create", {"user": "kim", "name": " x"}, "name is not one printable line"),
        ("api-tokens/create", {"user": "kim", "name": "x", "ttl_seconds": 1}, "from 60 to"),
        (
            "api-tokens/create",
            {"user": "kim", "name": "x", "ttl_seconds": MAX_API_TOKEN_SECONDS + 1},
            "from 60 to",
        ),
        ("nodes/label", {"name": "shop-7", "labels": ["a"]}, "is not a label"),
        ("nodes/label", {"name": "shop-7", "labels": ["a=b", "a-"]}, "a is named twice"),
        ("nodes/label", {"name": "shop-7", "labels": ["a=b"]}, "no node shop-7 is known here"),
    ],
)
async def test_what_is_refused_changes_nothing(
    tmp_path: Path, path: str, given_arguments: dict[str, Any], sentence: str
) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(Refused) as caught:
            await do(store, path, **given_arguments)
        assert sentence in caught.value.detail
        assert caught.value.reason in (Reason.BAD_REQUEST, Reason.NOT_FOUND)
        assert await store.audit(AuditQuery()) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["name", "group", "users", "grant", "document", "ids", "labels", "user", "hash", "note", "prune"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.sampled_from(sorted(ACCESS_WRITES)), st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
async def test_whatever_is_asked_the_answer_is_an_answer_or_a_refusal(
    tmp_path: Path, path: str, given_arguments: dict[str, Any]
) -> None:
    async with opened(tmp_path) as store:
        try:
            await do(store, path, **given_arguments)
        except Refused as refused:
            assert refused.detail
