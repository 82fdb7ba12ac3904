from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fakes.granting import grant
from tunnel_core.names import Target
from tunnel_server.access import policy
from tunnel_server.access.policy import AccessRequest, Decision, GrantIndex, Reads
from tunnel_server.auth.access_rules import AccessChange, AccessRules, AccessSnapshot, Account
from tunnel_server.auth.grants import Grant, Verb

NOBODY: frozenset[str] = frozenset()
KIM = Account("kim", groups=frozenset({"ops"}))


def index_of(*grants: Grant, accounts: tuple[Account, ...] = (KIM,), contact: str = "") -> GrantIndex:
    labels = {"shop-7": {"site": "hamburg"}}
    return GrantIndex(AccessRules(AccessSnapshot(accounts, grants, labels)), contact)


def ask(index: GrantIndex, text: str, groups: frozenset[str] = NOBODY) -> Decision:
    """Decide a request such as ``kim connect shop-7 ssh``."""
    user, verb, node, target = (*text.split(), "", "")[:4]
    return index.decide(
        AccessRequest(user, groups, Verb(verb), node, Target.parse(target) if target else None)
    )


@pytest.mark.parametrize(
    ("table", "request_text", "allowed"),
    [
        ({"users": ["kim"]}, "kim connect shop-7 ssh", True),
        ({"users": ["lee"]}, "kim connect shop-7 ssh", False),
        ({"users": [], "groups": ["ops"]}, "kim connect shop-7 ssh", True),
        ({"users": [], "groups": ["ops"]}, "lee connect shop-7 ssh", False),
        ({}, "anybody connect shop-7 ssh", True),
        ({"verbs": ["connect"]}, "kim http shop-7 ssh", False),
        ({"nodes": ["shop-8"]}, "kim connect shop-7 ssh", False),
        ({"nodes": ["shop-*"]}, "kim connect shop-7 ssh", True),
        ({"nodes": ["site=hamburg"]}, "kim connect shop-7 ssh", True),
        ({"nodes": ["site=hamburg"]}, "kim connect shop-8 ssh", False),
        ({"targets": ["22"]}, "kim connect shop-7 localhost:22", True),
        ({"targets": ["22"]}, "kim connect shop-7 localhost:23", False),
        ({"verbs": ["api"], "targets": []}, "kim api shop-7", True),
        ({"verbs": ["admin"], "nodes": [], "targets": []}, "kim admin", True),
        ({"verbs": ["api"], "targets": []}, "kim admin", False),
    ],
)
def test_decisions(table: dict[str, Any], request_text: str, allowed: bool) -> None:
    decision = ask(index_of(grant("g", **table)), request_text)
    assert (decision.grant is not None) is allowed
    assert bool(decision.refusal) is not allowed


def test_nothing_is_allowed_without_a_grant() -> None:
    assert ask(index_of(), "kim connect shop-7 ssh").grant is None


def test_groups_of_the_login_count_beside_those_of_the_store() -> None:
    index = index_of(grant("g", users=[], groups=["field"]))
    assert ask(index, "kim connect shop-7 ssh").grant is None
    assert ask(index, "kim connect shop-7 ssh", frozenset({"field"})).grant is not None


def test_a_disabled_user_may_do_nothing() -> None:
    index = index_of(grant("g"), accounts=(Account("kim", is_disabled=True),))
    decision = ask(index, "kim connect shop-7 ssh", frozenset({"ops"}))
    assert decision.refusal == "user kim is disabled here; ask the administrator of this server"
    assert index.reads("kim", NOBODY) is Reads.NONE


@pytest.mark.parametrize(
    ("tables", "request_text", "sentence"),
    [
        (
            [{"users": [], "groups": ["ops"], "verbs": ["http"], "targets": ["*"]}],
            "kim connect shop-7 ssh",
            "user kim may not connect to ssh of node shop-7: "
            "grant g0 lets group ops http on this node; you asked connect; ask it@example.com",
        ),
        (
            [{"users": ["kim"], "verbs": ["connect"], "targets": ["22", "web", "x", "y"]}],
            "kim connect shop-7 ssh",
            "user kim may not connect to ssh of node shop-7: grant g0 lets user kim connect "
            "to 22, web, x, ... on this node; you asked ssh; ask it@example.com",
        ),
        (
            [{"users": ["kim"], "verbs": ["connect"], "nodes": ["site=berlin"]}],
            "kim connect shop-7 ssh",
            "user kim may not connect to ssh of node shop-7: grant g0 lets user kim connect to * "
            "on node site=berlin; you asked shop-7; ask it@example.com",
        ),
        (
            [],
            "kim http shop-7 web",
            "user kim may not open web of node shop-7 in a browser: "
            "no grant names kim or group ops; ask it@example.com",
        ),
        ([], "lee api shop-7", "user lee may not read node shop-7: no grant names lee; ask it@example.com"),
        ([], "lee api", "user lee may not read the nodes: no grant names lee; ask it@example.com"),
        (
            [{"verbs": ["api"], "targets": []}],
            "lee admin",
            "user lee may not ask about other users: "
            "grant g0 lets every user api on node *; you asked admin; ask it@example.com",
        ),
    ],
)
def test_a_refusal_says_who_what_the_nearest_grant_and_whom_to_ask(
    tables: list[dict[str, Any]], request_text: str, sentence: str
) -> None:
    grants = [grant(f"g{number}", **table) for number, table in enumerate(tables)]
    assert ask(index_of(*grants, contact="it@example.com"), request_text).refusal == sentence


def test_the_nearest_grant_lacks_the_least() -> None:
    index = index_of(
        grant("node", nodes=["shop-8"]),
        grant("verb", verbs=["http"]),
        grant("target", targets=["web"]),
    )
    nearest = ask(index, "kim connect shop-7 ssh").nearest
    assert nearest is not None and nearest.id == "target"


def test_a_change_counts_at_once() -> None:
    rules = AccessRules()
    index = GrantIndex(rules)
    rules.subscribe(index.update)
    steps: list[tuple[AccessChange, bool]] = [
        (AccessChange(grants={"g": grant("g", users=[], groups=["ops"])}), False),
        (AccessChange(accounts={"kim": KIM}), True),
        (AccessChange(accounts={"kim": None}), False),
        (AccessChange(grants={"g": grant("g", nodes=["site=x"])}), False),
        (AccessChange(labels={"shop-7": {"site": "x"}}), True),
        (AccessChange(labels={"shop-7": None}), False),
        (AccessChange(grants={"g": grant("g", nodes=["shop-7"])}), True),
        (AccessChange(grants={"g": None}), False),
    ]
    for change, allowed in steps:
        rules.apply(change)
        assert (ask(index, "kim connect shop-7 ssh").grant is not None) is allowed


@pytest.mark.parametrize(
    ("tables", "reads"),
    [
        ([], Reads.NONE),
        ([{"verbs": ["connect"]}], Reads.NONE),
        ([{"verbs": ["admin"], "nodes": [], "targets": []}], Reads.NONE),
        ([{"verbs": ["api"], "nodes": ["shop-*"], "targets": []}], Reads.SOME),
        ([{"users": ["lee"]}], Reads.NONE),
        ([{"verbs": ["api"], "nodes": ["shop-7"], "targets": []}, {"verbs": ["*"]}], Reads.ALL),
    ],
)
def test_which_nodes_a_user_may_read(tables: list[dict[str, Any]], reads: Reads) -> None:
    index = index_of(*(grant(f"g{number}", **table) for number, table in enumerate(tables)))
    assert index.reads("kim", NOBODY) is reads
    assert index.reads("kim", NOBODY) is reads  # the kept one


def test_a_decision_reads_no_grant_of_another_subject_or_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10,000 grants a decision compares two; a refusal compares the nearest 100 at most."""
    others = [grant(f"u{number}", users=[f"u{number}"]) for number in range(5000)]
    named = [grant(f"n{number}", users=["kim"], nodes=[f"shop-{number}"]) for number in range(5000)]
    index = index_of(*others, *named, grant("wide", users=["kim"], verbs=["http"]))
    compared: list[str] = []
    allows = policy.allows

    def counted(tried: Grant, request: AccessRequest, labels: Any) -> bool:
        compared.append(tried.id)
        return allows(tried, request, labels)

    monkeypatch.setattr(policy, "allows", counted)
    assert ask(index, "kim connect shop-7 ssh").grant == named[7]
    assert compared == ["n7"]
    assert ask(index, "kim connect other ssh").grant is None
    assert compared == ["n7", "wide"]
    ask(index, "kim connect other ssh")  # kept
    assert compared == ["n7", "wide"]


def test_a_question_for_a_list_looks_for_no_nearest_grant_and_displaces_no_decision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = index_of(*(grant(f"n{number}", users=["kim"], nodes=[f"shop-{number}"]) for number in range(50)))
    assert ask(index, "kim connect shop-7 ssh").grant is not None
    kept, lacking = dict(index._decisions), []
    monkeypatch.setattr(policy, "_lacks", lambda *one: lacking.append(one) or 0)
    for number in range(100):
        request = AccessRequest("kim", NOBODY, Verb.API, f"shop-{number}")
        assert index.allows(request) is (number < 50)
    assert not lacking and index._decisions == kept
    ask(index, "kim connect other ssh")
    assert len(lacking) == 50  # for the sentence


def test_admin_counts_only_in_a_grant_without_bounds_on_nodes() -> None:
    on_some = grant("some", users=["kim"], nodes=["shop-*"])
    everywhere = grant("all", users=["lee"])
    alone = grant("alone", users=["robin"], verbs=["admin"], nodes=[], targets=[])
    index = index_of(on_some, everywhere, alone, accounts=())
    allowed = [ask(index, f"{name} admin").grant for name in ("kim", "lee", "robin")]
    assert allowed == [None, everywhere, alone]
    assert ask(index, "kim connect shop-7 ssh").grant == on_some


def test_every_user_does_not_include_the_programs_that_nothing_authenticates() -> None:
    index = index_of(grant("everyone", users=["*"]), accounts=())
    assert ask(index, "kim http shop-7 web").grant is not None
    assert ask(index, "loopback http shop-7 web").grant is None
    named = index_of(grant("named", users=["loopback"]), accounts=())
    assert ask(named, "loopback http shop-7 web").grant is not None


def test_the_kept_decisions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "MAX_KEPT", 3)
    index = index_of(grant("g"))
    for number in range(10):
        ask(index, f"kim connect n{number} ssh")
        index.reads(f"u{number}", NOBODY)
    assert len(index._decisions) <= 3 and len(index._reads) <= 3


WORDS = st.sampled_from(["a", "b"])
SUBJECTS = st.lists(WORDS | st.just("c"), max_size=2, unique=True)
GRANTS = st.builds(
    lambda users, groups, verbs, nodes, targets: {
        "users": users if users or groups else ["a"],
        "groups": groups,
        "verbs": verbs,
        "nodes": nodes,
        "targets": targets,
    },
    SUBJECTS | st.just(["*"]),
    SUBJECTS,
    st.sampled_from([["connect"], ["connect", "http"], ["*"]]),
    st.sampled_from([["a"], ["b", "a"], ["*"], ["site=x"], ["site=x", "b"]]),
    st.sampled_from([["a"], ["b"], ["*"]]),
)
STEPS = st.one_of(
    st.tuples(st.just("grant"), WORDS, GRANTS | st.none()),
    st.tuples(st.just("account"), WORDS, st.none() | st.tuples(SUBJECTS, st.booleans())),
    st.tuples(st.just("label"), WORDS, st.none() | st.sampled_from([{"site": "x"}, {"site": "y"}])),
)


@given(
    st.lists(STEPS, max_size=12), WORDS, WORDS, WORDS, st.sampled_from([Verb.CONNECT, Verb.HTTP]), SUBJECTS
)
def test_the_index_decides_as_a_scan_of_all_grants(
    steps: list[Any], user: str, node: str, target: str, verb: Verb, groups: list[str]
) -> None:
    rules = AccessRules()
    index = GrantIndex(rules)
    rules.subscribe(index.update)
    request = AccessRequest(user, frozenset(groups), verb, node, Target(service=target))
    for kind, name, value in steps:
        index.decide(request)  # so that a kept decision would show
        if kind == "grant":
            rules.apply(AccessChange(grants={name: value and grant(name, **value)}))
        elif kind == "account":
            account = value and Account(name, groups=frozenset(value[0]), is_disabled=value[1])
            rules.apply(AccessChange(accounts={name: account}))
        else:
            rules.apply(AccessChange(labels={name: value}))
    assert (index.decide(request).grant is not None) is _by_scan(rules, request)
    assert index.allows(request) is _by_scan(rules, request)


def _by_scan(rules: AccessRules, request: AccessRequest) -> bool:
    account = rules.accounts.get(request.user)
    if account is not None and account.is_disabled:
        return False
    groups = request.groups | (account.groups if account else NOBODY)
    return any(
        ({request.user, "*"} & set(grant.users) or groups & set(grant.groups))
        and policy.allows(grant, request, rules.labels_of(request.node))
        for grant in rules.grants.values()
    )
