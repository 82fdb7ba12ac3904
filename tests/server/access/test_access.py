from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.fakes.granting import grant
from tunnel_core.identity import Role
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_server.access.access import Access
from tunnel_server.auth.access_rules import AccessChange, AccessRules, AccessSnapshot, Account
from tunnel_server.auth.users import Administrator, User

DOMAIN = "test.internal"
SSH = Target(service="ssh")


def user(name: str = "kim", domain: str = DOMAIN) -> User:
    return User(name, Role.USER, domain)


@dataclass
class Site:
    """An access with streams, which are ended when they lose their grant."""

    rules: AccessRules
    access: Access = field(init=False)
    ended: list[tuple[str, int, Refused]] = field(default_factory=list)
    reset: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.access = Access(
            self.rules, trust_domain=DOMAIN, on_ended=lambda *ended: self.ended.append(ended)
        )

    def open(self, name: str = "kim", node: str = "n1", target: Target = SSH) -> Any:
        allowed = self.access.authorise(user(name), "connect", node, target)
        assert allowed is not None
        return self.access.watch(
            user(name), "connect", node, target, allowed, lambda _: self.reset.append((name, node))
        )

    def change(self, **tables: Any) -> None:
        self.rules.apply(AccessChange(**tables))


def site_of(*grants: Any, accounts: tuple[Account, ...] = (), **labels: dict[str, str]) -> Site:
    return Site(AccessRules(AccessSnapshot(accounts, grants, labels)))


def test_each_entrance_has_its_verb() -> None:
    access = site_of(grant("c", verbs=["connect"])).access
    assert access.authorise(user(), "connect", "n1", SSH) is not None
    with pytest.raises(Refused, match="open ssh of node n1 in a browser") as caught:
        access.authorise(user(), "web", "n1", SSH)
    assert caught.value.reason is Reason.NOT_GRANTED
    with pytest.raises(Refused, match="no verb is known for the entrance logs"):
        access.authorise(user(), "logs", "n1", SSH)


def test_the_configuration_of_a_tcp_port_is_its_grant() -> None:
    assert site_of().access.authorise(user("127.0.0.1"), "tcp", "n1", SSH) is None


@pytest.mark.parametrize("entrance", ["connect", "tcp"])
def test_who_is_no_user_of_this_trust_domain_is_refused_whatever_the_grants(entrance: str) -> None:
    access = site_of(grant()).access
    with pytest.raises(Refused) as caught:
        access.authorise(user(domain="other.internal"), entrance, "n1", SSH)
    assert caught.value.reason is Reason.WRONG_TRUST_DOMAIN
    with pytest.raises(Refused) as caught:
        access.authorise(User("n1", Role.NODE, DOMAIN), entrance, "n1", SSH)
    assert caught.value.reason is Reason.WRONG_ROLE


def test_which_nodes_a_user_may_read() -> None:
    access = site_of(grant("a", users=["all"]), grant("s", users=["some"], nodes=["n1"])).access
    assert access.may_read(user("all")) is None
    assert access.may_read(Administrator("uid-0", Role.USER, DOMAIN)) is None
    may_read = access.may_read(user("some"))
    assert may_read is not None and may_read("n1") and not may_read("n2")
    with pytest.raises(Refused, match="user none may not read the nodes"):
        access.may_read(user("none"))
    access.require_node(user("some"), "n1")
    access.require_node(Administrator("uid-0", Role.USER, DOMAIN), "n2")
    with pytest.raises(Refused, match="user some may not read node n2"):
        access.require_node(user("some"), "n2")


def test_a_removed_grant_ends_its_streams_with_one_report_for_each_user() -> None:
    site = site_of(grant("g"))
    site.open()
    site.open(node="n2")
    site.open("lee")
    site.change(grants={"g": None})
    assert sorted(site.reset) == [("kim", "n1"), ("kim", "n2"), ("lee", "n1")]
    assert sorted((name, count) for name, count, _ in site.ended) == [("kim", 2), ("lee", 1)]
    refused = site.ended[0][2]
    assert refused.reason is Reason.NOT_GRANTED
    assert refused.detail.startswith("access was withdrawn: user ")
    assert site.access.watched_count == 0
    assert not site.access._by_grant and not site.access._by_user


def test_a_stream_that_another_grant_allows_goes_on_and_depends_on_that_grant() -> None:
    site = site_of(grant("one"), grant("two"))
    watched = site.open()
    first = watched.grant.id
    site.change(grants={first: None})
    assert not site.reset and watched.grant.id != first
    site.change(grants={watched.grant.id: None})
    assert site.reset == [("kim", "n1")]


def test_a_narrowed_grant_ends_what_it_does_not_allow_any_more() -> None:
    site = site_of(grant("g"))
    site.open(node="n1")
    site.open(node="n2")
    site.change(grants={"g": grant("g", nodes=["n1"])})
    assert site.reset == [("kim", "n2")]


def test_a_user_who_leaves_a_group_or_is_disabled_loses_streams() -> None:
    kim, lee = Account("kim", groups=frozenset({"ops"})), Account("lee")
    site = site_of(grant("ops", users=[], groups=["ops"]), grant("lee", users=["lee"]), accounts=(kim, lee))
    site.open()
    site.open("lee")
    site.change(accounts={"kim": Account("kim")})
    assert site.reset == [("kim", "n1")]
    site.change(accounts={"lee": Account("lee", is_disabled=True)})
    assert site.reset[1:] == [("lee", "n1")]
    with pytest.raises(Refused, match="user lee is disabled here"):
        site.open("lee")


def test_a_lost_label_ends_the_streams_of_selectors_only() -> None:
    site = site_of(grant("s", nodes=["site=x"]), grant("n", users=["lee"], nodes=["n1"]), n1={"site": "x"})
    site.open()
    site.open("lee")
    site.change(labels={"n1": {"site": "y"}})
    assert site.reset == [("kim", "n1")]


def test_a_stream_that_ended_is_forgotten() -> None:
    site = site_of(grant("g"))
    watched = site.open()
    watched.remove()
    watched.remove()
    site.change(grants={"g": None})
    assert not site.reset and not site.ended


def test_an_end_may_remove_other_streams() -> None:
    site = site_of(grant("g"))
    both: list[Any] = []

    def end(_: Refused) -> None:
        for watched in both:
            watched.remove()
        site.reset.append(("kim", "n1"))

    allowed = grant("g")
    both += [site.access.watch(user(), "connect", "n1", SSH, allowed, end) for _ in range(2)]
    site.change(grants={"g": None})
    assert len(site.reset) == 1


def test_a_change_decides_only_the_streams_that_it_may_concern() -> None:
    """Of 1,000 streams: 1 for a grant of one user, 10 for one account, none for a new grant."""
    grants = [grant(f"g{number}", users=[f"u{number}"]) for number in range(100)]
    accounts = tuple(Account(f"u{number}") for number in range(100))
    site = site_of(*grants, grant("one", users=["one"]), accounts=accounts)
    for number in range(999):
        site.open(f"u{number % 100}", node=f"n{number % 7}")
    site.open("one")
    site.change(grants={"new": grant("new")})
    assert site.access.rechecked == 0
    site.change(grants={"one": None, "new": None})
    assert site.access.rechecked == 1 and site.reset == [("one", "n1")]
    site.change(accounts={"u3": Account("u3", groups=frozenset({"ops"}))})
    assert site.access.rechecked == 11 and len(site.reset) == 1
    site.change(labels={"n1": {"site": "x"}})
    assert site.access.rechecked == 11
    site.change(accounts={"u3": Account("u3", is_disabled=True)})
    assert site.access.rechecked == 21 and len(site.reset) == 11
    assert site.access.watched_count == 989
