"""Access of users: authorise requests, filter what the API shows, and end streams that lose their grant.

1. A stream is authorised once, when it is opened, and registers here with its grant.
2. A change of grants, accounts or labels is reported by ``AccessRules``. Only the streams that the changed
   grants allowed, those of the changed accounts, and those on a relabelled node by a selector, are decided
   again. A stream that another grant allows goes on; the others end at once.
3. The ``[[tcp]]`` listener has no users. Its entry in the configuration grants what the entry names, and
   nothing else. The mode of the admin socket's file decides who is an administrator.

For the trio thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_server.access.policy import AccessRequest, GrantIndex, Reads
from tunnel_server.auth.access_rules import AccessChange, AccessRules
from tunnel_server.auth.grants import Grant, Verb
from tunnel_server.auth.users import Administrator, User, why_no_user

VERBS: Mapping[str, Verb] = MappingProxyType({"connect": Verb.CONNECT, "web": Verb.HTTP})
"""The verb that each entrance enforces. A stream of an entrance without a verb is refused."""
CONFIGURED = frozenset({"tcp"})
"""Entrances whose configuration grants exactly the one target that it names."""


class WatchedStream:
    """A stream that depends on a grant. ``end`` is called at most once, and must not block or raise."""

    __slots__ = ("_access", "end", "grant", "request")

    def __init__(
        self, access: Access, request: AccessRequest, grant: Grant, end: Callable[[Refused], None]
    ) -> None:
        self._access = access
        self.request = request
        self.grant = grant
        self.end = end

    def remove(self) -> None:
        """Stop watching, because the stream has ended by itself. Idempotent."""
        self._access.forget(self)


class Access:
    """Access by the grants of ``rules``. ``contact`` is whom a refused user asks.

    ``on_ended`` is called after a change that ended streams, with the user, the number and the refusal of
    the first of them.
    """

    def __init__(
        self,
        rules: AccessRules,
        *,
        trust_domain: str,
        on_ended: Callable[[str, int, Refused], None],
        contact: str = "",
    ) -> None:
        self.index = GrantIndex(rules, contact)
        self.rechecked = 0
        """Streams that were decided again because of a change."""
        self._trust_domain = trust_domain
        self._on_ended = on_ended
        self._by_grant: dict[str, set[WatchedStream]] = {}
        self._by_user: dict[str, set[WatchedStream]] = {}
        self._by_node: dict[str, set[WatchedStream]] = {}  # Only streams that a selector allows.
        rules.subscribe(self._on_change)

    # Requests.

    def authorise(self, user: User, entrance: str, node: str, target: Target) -> Grant | None:
        """Return the grant that allows a stream, or None for an entrance that its configuration grants.

        Raises ``Refused``. The agent also checks the target against its own configuration.
        """
        refused = why_no_user(user, self._trust_domain)
        if refused is not None:
            raise refused
        if entrance in CONFIGURED:
            return None
        verb = VERBS.get(entrance)
        if verb is None:
            raise Refused(Reason.NOT_GRANTED, f"no verb is known for the entrance {entrance}")
        return self.require(user, verb, node, target)

    def require(self, user: User, verb: Verb, node: str = "", target: Target | None = None) -> Grant:
        """Return the grant that allows ``verb``, or raise ``Refused`` with ``NOT_GRANTED``."""
        decision = self.index.decide(AccessRequest(user.name, user.groups, verb, node, target))
        if decision.grant is None:
            raise Refused(Reason.NOT_GRANTED, decision.refusal)
        return decision.grant

    def may_read(self, user: User) -> Callable[[str], bool] | None:
        """Return which nodes the user may read, by name; None for all nodes.

        Raises ``Refused`` for a user who may read none.
        """
        if isinstance(user, Administrator):
            return None
        reads = self.index.reads(user.name, user.groups)
        if reads is Reads.ALL:
            return None
        if reads is Reads.NONE:
            self.require(user, Verb.API)
        return lambda node: self.may(user, Verb.API, node)

    def may(self, user: User, verb: Verb, node: str, target: Target | None = None) -> bool:
        """Whether a grant allows ``verb`` on the node: to ``target``, or to any target if that is None."""
        return self.index.allows(AccessRequest(user.name, user.groups, verb, node, target))

    def may_read_node(self, user: User, node: str) -> bool:
        """Whether the user may read this node."""
        if isinstance(user, Administrator):
            return True
        return self.may(user, Verb.API, node)

    def require_node(self, user: User, node: str) -> None:
        """Raise ``Refused`` unless the user may read this node."""
        if not isinstance(user, Administrator):
            self.require(user, Verb.API, node)

    # Streams.

    def watch(
        self,
        user: User,
        entrance: str,
        node: str,
        target: Target,
        grant: Grant,
        end: Callable[[Refused], None],
    ) -> WatchedStream:
        """Call ``end`` when no grant allows the stream any more. ``grant`` allows the stream now."""
        request = AccessRequest(user.name, user.groups, VERBS[entrance], node, target)
        watched = WatchedStream(self, request, grant, end)
        self._add(watched)
        return watched

    @property
    def watched_count(self) -> int:
        """The number of streams that depend on a grant."""
        return sum(map(len, self._by_user.values()))

    def forget(self, watched: WatchedStream) -> None:
        """Remove a stream. Idempotent."""
        for places, key in self._places(watched):
            found = places.get(key)
            if found is not None:
                found.discard(watched)
                if not found:
                    del places[key]

    def _add(self, watched: WatchedStream) -> None:
        for places, key in self._places(watched):
            places.setdefault(key, set()).add(watched)

    def _places(self, watched: WatchedStream) -> list[tuple[dict[str, set[WatchedStream]], str]]:
        request, grant = watched.request, watched.grant
        places = [(self._by_grant, grant.id), (self._by_user, request.user)]
        if grant.has_selector:
            places.append((self._by_node, request.node))
        return places

    # Changes.

    def _on_change(self, change: AccessChange) -> None:
        self.index.update(change)
        affected: dict[WatchedStream, None] = {}
        for places, keys in (
            (self._by_grant, change.grants),
            (self._by_user, change.accounts),
            (self._by_node, change.labels),
        ):
            for key in keys:
                affected.update(dict.fromkeys(places.get(key, ())))
        self._recheck(affected)

    def _recheck(self, affected: Iterable[WatchedStream]) -> None:
        """Decide the streams again, and end those that are not allowed. An ``end`` may remove others."""
        counts, refusals = Counter[str](), dict[str, Refused]()
        for watched in affected:
            user = watched.request.user
            if watched not in self._by_user.get(user, ()):
                continue
            self.rechecked += 1
            decision = self.index.decide(watched.request)
            self.forget(watched)
            if decision.grant is not None:
                watched.grant = decision.grant
                self._add(watched)
                continue
            refused = Refused(Reason.NOT_GRANTED, f"access was withdrawn: {decision.refusal}")
            watched.end(refused)
            counts[user] += 1
            refusals.setdefault(user, refused)
        for user, count in counts.items():
            self._on_ended(user, count, refusals[user])
