"""Decide what a user may do: a pure function of the user, the verb, the node, the target and the grants.

1. What no grant allows is refused. A disabled account may do nothing.
2. A user has the groups of the store and those of the login. A user without an account has only grants that
   name the user, a group of the login, or every user.
3. Selectors read only labels that were set on the server. An agent cannot widen who reaches it.
4. ``GrantIndex`` finds the grants of a subject, and of a node by its exact name, so that a decision does not
   read the grants of others. Decisions are kept until something changes. ``GrantIndex.allows`` keeps nothing,
   so that a list of 10,000 nodes does not displace the decisions of streams.
5. A refusal names the user, the wish, the grant that comes nearest, and whom to ask. ``GrantIndex.decide``
   looks for the nearest grant, which takes much longer than the decision.
6. The user ``*`` is every authenticated user. The user ``loopback`` is not authenticated.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import NamedTuple

from tunnel_core.names import Target
from tunnel_server.auth.access_rules import AccessChange, AccessRules
from tunnel_server.auth.grant_patterns import EVERYTHING
from tunnel_server.auth.grants import Grant, Verb
from tunnel_server.auth.users import LOOPBACK_USER

MAX_NEAR = 100
"""Grants that are compared for the nearest miss of one refusal, which takes less than a millisecond."""
MAX_KEPT = 4096
"""Decisions that are kept, some 300 bytes each. A full memory is emptied, because decisions are cheap."""
_SHOWN = 3
_ADMINISTRATOR = "the administrator of this server"


class AccessRequest(NamedTuple):
    """A wish of a user. ``groups`` are those of the login; the store adds its own.

    ``node`` is empty for the verb admin, and ``target`` is None for verbs that open no stream.
    """

    user: str
    groups: frozenset[str]
    verb: Verb
    node: str = ""
    target: Target | None = None

    @property
    def wish(self) -> str:
        """The wish as part of a sentence, after "may" or "to"."""
        match self.verb:
            case Verb.CONNECT:
                return f"connect to {self.target} of node {self.node}"
            case Verb.HTTP:
                return f"open {self.target} of node {self.node} in a browser"
            case Verb.API:
                return f"read node {self.node}" if self.node else "read the nodes"
            case Verb.ADMIN:
                return "ask about other users"


class Decision(NamedTuple):
    """The grant that allows a request, or the sentence of the refusal and the nearest grant, if any."""

    grant: Grant | None
    refusal: str = ""
    nearest: Grant | None = None


class Reads(enum.Enum):
    """The nodes that a user may read in the API."""

    NONE = enum.auto()
    SOME = enum.auto()
    ALL = enum.auto()


class _SubjectGrants:
    """Grants of one user or group: by the exact names of nodes, and those with patterns or labels."""

    __slots__ = ("exact", "wide")

    def __init__(self) -> None:
        self.exact: dict[str, dict[str, Grant]] = {}
        self.wide: dict[str, Grant] = {}

    def add(self, grant: Grant) -> None:
        if not grant.nodes or not all(pattern.is_exact for pattern in grant.nodes):
            self.wide[grant.id] = grant
            return
        for pattern in grant.nodes:
            self.exact.setdefault(pattern.name, {})[grant.id] = grant

    def remove(self, grant: Grant) -> None:
        self.wide.pop(grant.id, None)
        for pattern in grant.nodes:
            named = self.exact.get(pattern.name, {})
            named.pop(grant.id, None)
            if not named:
                self.exact.pop(pattern.name, None)

    def of_node(self, node: str) -> Iterable[Grant]:
        exact = self.exact.get(node)
        return chain(exact.values(), self.wide.values()) if exact else self.wide.values()

    def all(self) -> Iterator[Grant]:
        yield from self.wide.values()
        for named in self.exact.values():
            yield from named.values()

    @property
    def is_empty(self) -> bool:
        return not self.wide and not self.exact


class GrantIndex:
    """The grants of ``rules`` by subject, and the decisions that follow from them.

    Call ``update`` after each change of the rules. ``contact`` is whom a refused user asks.
    """

    def __init__(self, rules: AccessRules, contact: str = "") -> None:
        self._rules = rules
        self._contact = contact or _ADMINISTRATOR
        self._users: dict[str, _SubjectGrants] = {}
        self._groups: dict[str, _SubjectGrants] = {}
        self._indexed: dict[str, Grant] = {}
        self._decisions: dict[AccessRequest, Decision] = {}
        self._reads: dict[tuple[str, frozenset[str]], Reads] = {}
        self.update(AccessChange(grants=dict(rules.grants)))

    def update(self, change: AccessChange) -> None:
        """Follow a change that the rules have already taken over."""
        self._decisions.clear()
        self._reads.clear()
        for grant_id, grant in change.grants.items():
            old = self._indexed.pop(grant_id, None)
            if old is not None:
                self._take_out(old)
            if grant is not None:
                self._indexed[grant_id] = grant
                for subjects, name in self._places(grant):
                    subjects.setdefault(name, _SubjectGrants()).add(grant)

    def _take_out(self, grant: Grant) -> None:
        for subjects, name in self._places(grant):
            subjects[name].remove(grant)
            if subjects[name].is_empty:
                del subjects[name]

    def _places(self, grant: Grant) -> Iterator[tuple[dict[str, _SubjectGrants], str]]:
        yield from ((self._users, name) for name in grant.users)
        yield from ((self._groups, name) for name in grant.groups)

    # Decisions.

    def decide(self, request: AccessRequest) -> Decision:
        """Return whether the request is allowed. The result for equal requests is kept."""
        decision = self._decisions.get(request)
        if decision is None:
            if len(self._decisions) >= MAX_KEPT:
                self._decisions.clear()
            decision = self._decisions[request] = self._decide(request)
        return decision

    def allows(self, request: AccessRequest) -> bool:
        """Whether the request is allowed, without the sentence of a refusal. For lists and pages."""
        return not self._is_disabled(request) and self._find(request) is not None

    def _decide(self, request: AccessRequest) -> Decision:
        if self._is_disabled(request):
            return Decision(None, f"user {request.user} is disabled here; ask {self._contact}")
        grant = self._find(request)
        if grant is not None:
            return Decision(grant)
        labels = self._rules.labels_of(request.node)
        nearest = self._nearest(request, labels)
        return Decision(None, self._refusal(request, nearest, labels), nearest)

    def _find(self, request: AccessRequest) -> Grant | None:
        """Return the first grant of the user that allows the request."""
        labels = self._rules.labels_of(request.node)
        for subject in self._subjects(request):
            for grant in subject.of_node(request.node):
                if allows(grant, request, labels):
                    return grant
        return None

    def _is_disabled(self, request: AccessRequest) -> bool:
        account = self._rules.accounts.get(request.user)
        return account is not None and account.is_disabled

    def reads(self, user: str, groups: frozenset[str]) -> Reads:
        """Return which nodes the user may read in the API. The result is kept."""
        kept = self._reads.get((user, groups))
        if kept is None:
            if len(self._reads) >= MAX_KEPT:
                self._reads.clear()
            kept = self._reads[user, groups] = self._decide_reads(AccessRequest(user, groups, Verb.API))
        return kept

    def _decide_reads(self, request: AccessRequest) -> Reads:
        if self._is_disabled(request):
            return Reads.NONE
        found = Reads.NONE
        for subject in self._subjects(request):
            for grant in subject.all():
                if Verb.API in grant.verbs and grant.nodes:
                    if any(pattern.name == EVERYTHING for pattern in grant.nodes):
                        return Reads.ALL
                    found = Reads.SOME
        return found

    def _subjects(self, request: AccessRequest) -> Iterator[_SubjectGrants]:
        """Yield the grants of the user, of the user's groups, and of every authenticated user."""
        user = self._users.get(request.user)
        if user is not None:
            yield user
        for name in sorted(self._rules.groups_of(request.user) | request.groups):
            group = self._groups.get(name)
            if group is not None:
                yield group
        everybody = self._users.get(EVERYTHING)
        if everybody is not None and request.user != LOOPBACK_USER:
            yield everybody

    # Refusals.

    def _nearest(self, request: AccessRequest, labels: Mapping[str, str]) -> Grant | None:
        """Return the grant of the user that lacks the least, among the first ``MAX_NEAR``."""
        own = chain.from_iterable(_near_first(subject, request.node) for subject in self._subjects(request))
        return min(islice(own, MAX_NEAR), key=lambda grant: _lacks(grant, request, labels), default=None)

    def _refusal(self, request: AccessRequest, nearest: Grant | None, labels: Mapping[str, str]) -> str:
        wish = f"user {request.user} may not {request.wish}"
        if nearest is None:
            groups = sorted(self._rules.groups_of(request.user) | request.groups)
            whom = f"{request.user} or {_listed(groups, 'group ')}" if groups else request.user
            return f"{wish}: no grant names {whom}; ask {self._contact}"
        return f"{wish}: {self._miss(nearest, request, labels)}; ask {self._contact}"

    def _miss(self, grant: Grant, request: AccessRequest, labels: Mapping[str, str]) -> str:
        """Return what the nearest grant allows, and which part of the request it lacks."""
        subject = self._subject_of(grant, request)
        verbs = "/".join(sorted(verb.value for verb in grant.verbs))
        has_verb = request.verb in grant.verbs
        has_node = bool(request.node) and grant.has_node(request.node, labels)
        nodes = "this node" if has_node else _listed(grant.nodes, "node ")
        targets = f" to {_listed(grant.targets)}" if grant.targets and has_verb else ""
        if not has_verb or not request.node:
            asked = request.verb.value
        else:
            asked = str(request.target) if has_node else request.node
        return f"grant {grant.id} lets {subject} {verbs}{targets} on {nodes}; you asked {asked}"

    def _subject_of(self, grant: Grant, request: AccessRequest) -> str:
        if request.user in grant.users:
            return f"user {request.user}"
        groups = (self._rules.groups_of(request.user) | request.groups).intersection(grant.groups)
        return f"group {min(groups)}" if groups else "every user"


def allows(grant: Grant, request: AccessRequest, labels: Mapping[str, str]) -> bool:
    """Whether a grant of the request's user allows the request. ``labels`` were set on the server."""
    if request.verb not in grant.verbs:
        return False
    if request.node and not grant.has_node(request.node, labels):
        return False
    target = request.target
    return target is None or any(pattern.matches(target) for pattern in grant.targets)


def _near_first(subject: _SubjectGrants, node: str) -> Iterator[Grant]:
    yield from subject.of_node(node)
    for name, named in subject.exact.items():
        if name != node:
            yield from named.values()


def _lacks(grant: Grant, request: AccessRequest, labels: Mapping[str, str]) -> int:
    """Return how far a grant is from the request: another target is nearer than another verb or node."""
    target = request.target
    has_target = target is None or any(pattern.matches(target) for pattern in grant.targets)
    has_node = not request.node or grant.has_node(request.node, labels)
    return 4 * (not has_node) + 2 * (request.verb not in grant.verbs) + (not has_target)


def _listed(items: Iterable[object], noun: str = "") -> str:
    texts = list(map(str, islice(items, _SHOWN + 1)))
    more = ", ..." if len(texts) > _SHOWN else ""
    return noun + ", ".join(texts[:_SHOWN]) + more
