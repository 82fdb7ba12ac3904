from __future__ import annotations

from tunnel_server.auth.access_rules import (
    AccessChange,
    AccessRules,
    AccessSnapshot,
    Account,
    UserKind,
)
from tunnel_server.auth.grants import Grant

GRANT = Grant.parse({"id": "g", "users": ["kim"], "verbs": ["api"], "nodes": ["*"]})
KIM = Account("kim", UserKind.SCRIPT, frozenset({"ops"}))


def test_a_snapshot_fills_the_rules() -> None:
    rules = AccessRules(AccessSnapshot((KIM,), (GRANT,), {"n1": {"site": "x"}}))
    assert rules.accounts == {"kim": KIM} and rules.grants == {"g": GRANT}
    assert rules.groups_of("kim") == {"ops"} and rules.groups_of("lee") == frozenset()
    assert rules.labels_of("n1") == {"site": "x"} and rules.labels_of("n2") == {}


def test_a_change_is_applied_before_the_subscribers_hear_of_it() -> None:
    rules = AccessRules()
    heard: list[tuple[AccessChange, int]] = []
    rules.subscribe(lambda change: heard.append((change, len(rules.grants))))
    put = AccessChange({"kim": KIM}, {"g": GRANT}, {"n1": {"site": "x"}})
    rules.apply(put)
    assert rules.groups_of("kim") == {"ops"} and rules.labels_of("n1") == {"site": "x"}
    removed = AccessChange({"kim": None}, {"g": None}, {"n1": None, "n2": {}})
    rules.apply(removed)
    rules.apply(removed)  # what is gone may be removed again
    assert not rules.accounts and not rules.grants and rules.labels_of("n1") == {}
    assert heard == [(put, 1), (removed, 0), (removed, 0)]
