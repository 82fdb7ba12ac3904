from __future__ import annotations

from typing import Any

import pytest

from tests.support.fakes.edge import TRUST_DOMAIN, Edge, open_edge
from tests.support.fakes.granting import grant
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_server.api.policy import answer, parse_question
from tunnel_server.auth.access_rules import AccessChange, Account
from tunnel_server.auth.users import Administrator, User

KIM = User("kim", Role.USER, TRUST_DOMAIN, None, frozenset({"field"}))
ADMIN = Administrator("uid-0", Role.USER, TRUST_DOMAIN)


def ask(edge: Edge, caller: User, query: str) -> dict[str, Any]:
    return answer(edge.opener.access, edge.nodes, caller, parse_question(query))


async def test_yes_names_the_grant_and_no_the_nearest() -> None:
    async with open_edge() as edge:
        edge.nodes.learn("shop.example.com")
        one = grant("ops", users=[], groups=["ops"], nodes=["*.example.com"], verbs=["http"], targets=["web"])
        kim = Account("kim", groups=frozenset({"ops"}))
        edge.rules.apply(AccessChange({"kim": kim}, {"everything": None, "ops": one}))
        alias = edge.nodes.find("shop.example.com").alias  # type: ignore[union-attr]
        assert ask(edge, ADMIN, f"user=kim&verb=http&node={alias}&target=web") == {
            "allowed": True,
            "user": "kim",
            "verb": "http",
            "node": "shop.example.com",
            "target": "web",
            "grant": one.as_table(),
            "nearest": None,
            "detail": "grant ops allows user kim to open web of node shop.example.com in a browser",
        }
        no = ask(edge, ADMIN, "user=kim&verb=connect&node=shop.example.com&target=22")
        assert (no["allowed"], no["grant"], no["nearest"]) == (False, None, one.as_table())
        assert no["target"] == "localhost:22"
        assert no["detail"].startswith("user kim may not connect to localhost:22 of node shop.example.com: ")


async def test_who_may_ask_about_whom() -> None:
    async with open_edge() as edge:
        rules = {
            "everything": None,
            "admins": grant("admins", users=["lee"], verbs=["admin"], nodes=[], targets=[]),
            "field": grant("field", users=[], groups=["field"]),
        }
        edge.rules.apply(AccessChange(grants=rules))
        query = "user=kim&verb=connect&node=n1&target=ssh"
        assert ask(edge, KIM, query)["allowed"]  # with the groups of the login
        lee = User("lee", Role.USER, TRUST_DOMAIN)
        assert not ask(edge, lee, query)["allowed"]  # the store knows no group of kim
        assert not ask(edge, ADMIN, query)["allowed"]
        with pytest.raises(Refused, match="user kim may not ask about other users") as caught:
            answer(
                edge.opener.access,
                edge.nodes,
                User("kim", Role.USER, TRUST_DOMAIN),
                parse_question("user=lee&verb=admin"),
            )
        assert caught.value.reason is Reason.NOT_GRANTED


async def test_a_user_learns_nothing_about_others_from_an_own_question() -> None:
    async with open_edge() as edge:
        secret = grant(
            "g",
            users=["kim", "robin"],
            groups=["ops"],
            nodes=["plant-*", "shop-1"],
            targets=["plc"],
            note="for the audit",
        )
        edge.rules.apply(AccessChange(grants={"everything": None, "g": secret}))
        yes = ask(edge, KIM, "user=kim&verb=connect&node=shop-1&target=plc")
        no = ask(edge, KIM, "user=kim&verb=connect&node=hall-1&target=ssh")
        assert (yes["grant"], yes["nearest"]) == ({"id": "g", "verbs": ["*"]}, None)
        assert (no["grant"], no["nearest"]) == (None, {"id": "g", "verbs": ["*"]})
        for answered in (yes, no):
            assert not {word for word in ("robin", "ops", "for the audit") if word in str(answered)}
        assert ask(edge, ADMIN, "user=kim&verb=connect&node=shop-1&target=plc")["grant"] == secret.as_table()
        admins = grant("admins", users=["kim"], verbs=["admin"], nodes=[], targets=[])
        edge.rules.apply(AccessChange(grants={"admins": admins}))
        yes = ask(edge, KIM, "user=kim&verb=connect&node=shop-1&target=plc")
        assert yes["grant"] == secret.as_table()


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("", "'' is not a verb; the verbs are connect, http, api, admin"),
        ("user=kim&verb=logs", "'logs' is not a verb"),
        ("verb=admin", "'' is not a user name"),
        ("user=kim&verb=connect&target=ssh", "the verb connect needs a node"),
        ("user=kim&verb=connect&node=n1", "the verb connect needs a target"),
        ("user=kim&verb=api&node=n1&target=ssh", "the verb api opens no target"),
        ("user=kim&verb=admin&node=n1", "the verb admin concerns no node"),
        ("user=kim&verb=connect&node=n1&target=a--b", "target: not a service name"),
        ("user=kim&verb=admin&user=lee", "comes twice"),
        ("user=kim&verb=admin&x=y", "'x' is not a parameter"),
        ("&".join("a=b" for _ in range(20)), "too many parameters"),
    ],
)
def test_questions_without_meaning_are_refused(query: str, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence) as caught:
        parse_question(query)
    assert caught.value.reason is Reason.BAD_REQUEST
