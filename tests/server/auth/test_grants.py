from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel_server.auth.grant_patterns import NodePattern
from tunnel_server.auth.grants import Grant, GrantError, Verb, format_grants, grants_of, parse_grants

OPS: dict[str, Any] = {
    "id": "ops",
    "users": ["kim"],
    "groups": ["ops"],
    "verbs": ["api", "connect", "http"],
    "nodes": ["shop-*", "site=hamburg"],
    "targets": ["22", "ssh"],
    "note": "on call",
}


def test_a_grant_and_its_table() -> None:
    grant = Grant.parse(OPS)
    assert grant.as_table() == OPS
    assert grant.has_selector
    assert grant.has_node("shop-1", {}) and grant.has_node("x", {"site": "hamburg"})
    assert not grant.has_node("x", {})


def test_the_canonical_text() -> None:
    grant = Grant.parse({"id": "g1", "users": ["*"], "verbs": ["*"], "nodes": ["*"], "targets": ["*"]})
    text = '[[grant]]\nid = "g1"\nusers = ["*"]\nverbs = ["*"]\nnodes = ["*"]\ntargets = ["*"]\n'
    assert grant.as_toml() == text
    assert grant.verbs == frozenset(Verb)
    assert parse_grants(text) == (grant,)


def test_order_and_repetition_make_no_difference() -> None:
    other = {**OPS, "verbs": ["http", "api", "connect", "api"], "targets": ["ssh", "localhost:22", "22"]}
    assert Grant.parse(other) == Grant.parse(OPS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": None}, "has no id"),
        ({"id": "A b"}, "is not the id of a grant"),
        ({"users": [], "groups": []}, "names nobody"),
        ({"users": "kim"}, r'users of grant ops is not a list: write users = \["..."\]'),
        ({"users": ["Kim"]}, "is not a user name"),
        ({"users": ["*", "kim"]}, r"\* beside other items"),
        ({"groups": ["*"]}, "for every user"),
        ({"groups": [" ops"]}, "is not a group's name"),
        ({"verbs": []}, "has no verbs: give some of connect, http, api, admin"),
        ({"verbs": ["fly"]}, "is not a verb; the verbs are"),
        ({"verbs": ["logs"]}, "raw connect cannot tell logs from exec"),
        ({"verbs": [1]}, "not a text in quotes"),
        ({"nodes": []}, "has no nodes"),
        ({"nodes": ["Shop"]}, "is not a node"),
        ({"targets": []}, "has no targets"),
        ({"targets": ["http://x"]}, "URL"),
        ({"verbs": ["api"]}, "its verbs open nothing"),
        ({"verbs": ["admin"]}, "admin concerns no node"),
        ({"verbs": ["admin", "connect"]}, "has admin, which concerns every node, beside verbs on some"),
        ({"verbs": ["http"]}, "the web entrance opens services by name, so http cannot reach 22"),
        ({"nodes": ["shop-1"] * 1001}, "1000 are allowed"),
        ({"note": "a\nb"}, "printable line"),
        ({"note": "x" * 201}, "printable line"),
        ({"deny": True}, "has no key 'deny'"),
    ],
)
def test_each_mistake_has_its_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GrantError, match=sentence):
        Grant.parse({**OPS, **change})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[[grant]", "not TOML"),
        ("[[deny]]", "each grant is a"),
        ("grant = 1", "not a list of tables"),
        (format_grants([Grant.parse(OPS)] * 2), "two grants have the id ops"),
    ],
)
def test_a_file_with_a_mistake(text: str, sentence: str) -> None:
    with pytest.raises(GrantError, match=sentence):
        parse_grants(text)


@pytest.mark.parametrize(("nodes", "has_admin"), [(["*"], True), (["shop-*"], False), (["a=b"], False)])
def test_every_verb_includes_admin_only_on_every_node(nodes: list[str], has_admin: bool) -> None:
    grant = Grant.parse({**OPS, "verbs": ["*"], "nodes": nodes})
    assert (Verb.ADMIN in grant.verbs) is has_admin
    assert Verb.API in grant.verbs
    assert grant.as_table()["verbs"] == ["*"]


def test_names_of_nodes_are_found_without_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [*(f"shop-{number}" for number in range(998)), "hall-*", "site=hamburg"]
    grant = Grant.parse({**OPS, "nodes": nodes})
    compared: list[str] = []
    matches = NodePattern.matches

    def counted(pattern: NodePattern, node: str, labels: Mapping[str, str]) -> bool:
        compared.append(str(pattern))
        return matches(pattern, node, labels)

    monkeypatch.setattr(NodePattern, "matches", counted)
    assert grant.has_node("shop-997", {}) and not compared
    assert not grant.has_node("other", {})
    assert compared == ["hall-*", "site=hamburg"]


def test_a_grant_of_admin_concerns_no_node() -> None:
    grant = Grant.parse({"id": "a", "groups": ["admins"], "verbs": ["admin"]})
    assert grant.as_table() == {"id": "a", "groups": ["admins"], "verbs": ["admin"]}
    assert grants_of({}) == ()


USERS = st.sampled_from(["kim", "a.b@example.com", "ci-1"])
GROUPS = st.sampled_from(["ops", "/Field Team", "b7a1-4c", "a:b"])
NODES = st.sampled_from(["shop-7", "shop-*", "*.example.com", "site=hamburg", "tier=1,site=x", "42"])
TARGETS = st.sampled_from(["ssh", "web-*", "22", "8000-8100", "plc.lan:502", "*:1-9", "10.0.0.0/8:443"]) | (
    st.sampled_from(["[2001:db8::/32]:80", "[2001:db8::1]:80", 'unix:/run/ü \\".sock'])
)


def _some(items: st.SearchStrategy[str], *, least: int = 0) -> st.SearchStrategy[list[str]]:
    return st.lists(items, min_size=least, max_size=4) | st.just(["*"])


@st.composite
def grants(draw: st.DrawFn, name: str) -> Grant:
    return Grant.parse(
        {
            "id": name,
            "users": draw(_some(USERS, least=1)),
            "groups": draw(st.lists(GROUPS, max_size=3)),
            "verbs": draw(st.sampled_from([["*"], ["connect"], ["connect", "http", "api"]])),
            "nodes": draw(_some(NODES, least=1)),
            "targets": draw(_some(TARGETS, least=1)),
            "note": draw(st.text(max_size=20).filter(lambda text: not text or text.isprintable())),
        }
    )


@given(grants("one"), grants("two"))
def test_what_is_written_is_read_back(one: Grant, two: Grant) -> None:
    assert parse_grants(format_grants([one, two])) == (one, two)
    assert Grant.parse(one.as_table()) == one
