"""Decisions about an enrolment: budgets against a slow oracle, and what unknown clients may write."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.requests import RequestRefused, make_request, read_request
from tests.support.pki import authority as pki
from tunnel_core.http.head import HttpRefused
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.names import is_node_name
from tunnel_core.reasons import Reason, Refused
from tunnel_server.pki.enrolment.rate_limits import RequestRateLimits
from tunnel_server.pki.enrolment.request import Login, node_asked_for, parse_login

GOOD = make_request(SpiffeId(pki.TRUST_DOMAIN, Role.NODE, "edge1"))

steps = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), max_size=60)


@given(steps)
def test_in_any_while_no_more_than_the_budget_is_spent(taken: list[tuple[str, int]]) -> None:
    budgets, now, spent = RequestRateLimits(burst=3, every_seconds=10), 0.0, {"a": [], "b": []}
    for key, pause in taken:
        now += pause
        wait = round(budgets.wait_seconds(key, now), 9)  # sums of fractions are not exact
        in_any_while = all(
            len([at for at in spent[key] if at >= since]) + 1 <= 3 + (now - since) / 10 + 1e-9
            for since in spent[key]
        )
        assert (wait == 0) == in_any_while
        if not wait:
            budgets.spend(key, now)
            spent[key].append(now)
        else:
            assert budgets.wait_seconds(key, now + wait) == pytest.approx(0, abs=1e-6)


def test_the_table_of_budgets_is_bounded_and_forgets_the_quietest() -> None:
    budgets = RequestRateLimits(burst=1, every_seconds=100, most=3)
    for now, key in enumerate("abcad"):
        budgets.spend(key, now)
    assert len(budgets) == 3
    assert [bool(budgets.wait_seconds(key, 5)) for key in "abcd"] == [True, False, True, True]


def test_requests_beyond_the_budget_do_not_lengthen_the_wait() -> None:
    budgets = RequestRateLimits(burst=2, every_seconds=10)
    for _ in range(100):
        budgets.spend("a", 0.0)
    assert budgets.wait_seconds("a", 0.0) == 10


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda raw: b"Basic " + base64.b64encode(raw)))
def test_a_login_is_read_or_refused(header: bytes) -> None:
    try:
        login = parse_login(header)
    except HttpRefused as refused:
        assert refused.reason is Reason.TOKEN_WRONG
        assert dict(refused.headers).keys() == {"www-authenticate"}
    else:
        assert login.node == "" or is_node_name(login.node)
        assert base64.b64decode(header.split(None, 1)[1]).decode() == f"{login.user}:{login.password}"


def test_a_login_never_shows_its_password() -> None:
    assert "secret" not in repr(parse_login(b"basic " + base64.b64encode(b"edge1:secret")))


texts = st.text(max_size=60) | st.sampled_from(["edge1", "node edge2", "spiffe://test.internal/node/edge3"])


@given(st.lists(texts, max_size=3), st.lists(texts, max_size=3), texts)
def test_the_name_asked_for_is_a_nodes_or_there_is_none(uris: list[str], names: list[str], user: str) -> None:
    try:
        node = node_asked_for(tuple(uris), tuple(names), Login(user, ""))
    except Refused as refused:
        assert refused.reason is Reason.BAD_CSR
    else:
        assert is_node_name(node)


def test_the_name_in_the_request_comes_before_the_user_name() -> None:
    login = Login("edge9", "")
    assert node_asked_for(("spiffe://any/node/edge1",), ("edge2",), login) == "edge1"
    assert node_asked_for(("spiffe://any/user/edge1",), ("node edge2",), login) == "edge2"
    assert node_asked_for((), ("Our Box",), login) == "edge9"


@given(st.data())
def test_a_body_with_a_few_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(data.draw(st.sampled_from([GOOD.body, GOOD.request_der])))
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(body)))
    try:
        request = read_request(bytes(body[:cut]))
    except RequestRefused as refused:
        assert refused.reason in (Reason.BAD_CSR, Reason.WEAK_KEY)
    else:
        assert len(request.key_sha256) == 64
