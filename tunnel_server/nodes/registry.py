"""Which node is attached by which link, and what is still known of nodes that are gone. No I/O.

Nodes that the store knows are here from the start of the server on, as nodes that are gone. A node leaves
by ``forget``, or when more nodes are gone than are remembered.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from tunnel_core.humanize import ago
from tunnel_core.names import node_alias
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.handshake import AttachRejected
from tunnel_core.session.state import GONE, Loss, StateCategory
from tunnel_core.wire.frames import Rejected
from tunnel_server.accounting.write_budget import writes_budget
from tunnel_server.events.event_log import EventKind, Events
from tunnel_server.nodes.attach_budget import AttachBudget
from tunnel_server.nodes.takeovers import RETRY_SECONDS, TakeoverLimiter

if TYPE_CHECKING:
    from tunnel_core.session.session import Session
    from tunnel_core.wire.frames import Hello

MAX_GONE = 10_000
"""Nodes without an agent that stay known in memory, about 0.5 KiB each; twice ``[agents] max`` if that is
more."""
# difflib costs some 10 us a name; a mistyped name must not hold up the event loop of 5,000 nodes.
_MAX_COMPARED = 300


@dataclass(slots=True)
class Node:
    """One node as this server knows it. ``link`` is None when no session is left, not even in grace.

    ``last_seen`` (monotonic seconds) and ``last_seen_at`` are those of the loss or the end of the newest
    link. They are None if no agent of this node ever attached; ``since`` then says when it became known.
    """

    name: str
    alias: str
    link: Session | None
    since: datetime  # attached or resumed, lost, or gone
    session_since: datetime
    last_seen: float | None
    last_seen_at: datetime | None
    address: str = ""
    software: str = ""
    last_reason: Reason | None = None  # of a loss or an end, until the node is there again

    @property
    def state(self) -> str:
        """What a request would meet: a ``SessionState``'s word, or ``gone``."""
        if self.link is None or self.link.state.category is StateCategory.ABSENT:
            return GONE
        return str(self.link.state.value)

    @property
    def category(self) -> StateCategory:
        return StateCategory.ABSENT if self.link is None else self.link.state.category


class Nodes:
    """The registry. ``monotonic`` gives seconds for ages, ``wall`` the UTC time shown to people.

    ``is_revoked`` says whether no certificate of a node is let in, because its name was revoked.
    ``most_gone``: how many nodes without a session are remembered.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        wall: Callable[[], datetime],
        is_revoked: Callable[[str], bool],
        *,
        most_gone: int = MAX_GONE,
    ) -> None:
        self.events = Events(wall)
        self.is_revoked = is_revoked
        self.writes = writes_budget()
        """What each node may cause to be written: its events, and lines of the log."""
        self._most_gone = most_gone
        self._attaches = AttachBudget()
        self._duplicates = TakeoverLimiter()
        self._monotonic = monotonic
        self._wall = wall
        self._attached: dict[str, Node] = {}
        self._gone: dict[str, Node] = {}  # oldest first
        self._by_alias: dict[str, str] = {}

    def attach(self, name: str, link: Session) -> Node:
        """Makes ``link`` the one that serves ``name``; an older link ends with ``TAKEN_OVER`` at once.

        Call it for a link whose agent proved to be alive, not for a mere hello: the newest proven
        session wins, however healthy the old one looks, because a half-open one looks healthy too.
        """
        alias = node_alias(name)
        self._claim_alias(alias, name)
        old = self._attached.get(name)
        now = self._wall()
        node = Node(name, alias, link, now, now, self._monotonic(), now, link.peer_address, link.software)
        self._gone.pop(name, None)
        self._attached[name] = node
        if old is not None:
            self._end_old(old, link)
        self._tell(EventKind.ATTACHED, name, link.session_id, detail=f"from {link.peer_address}")
        return node

    def _tell(
        self, kind: EventKind, name: str, session_id: str, reason: Reason | None = None, detail: str = ""
    ) -> None:
        """Add an event of a node, unless the node has used up its budget for this kind."""
        left_out = self.writes.note((name, kind.value), self._monotonic())
        if left_out is not None:
            more = f"; {left_out} more of this kind were left out before" if left_out else ""
            self.events.add(kind, name, session_id, reason, detail + more)

    def spend_attach(self, name: str, *, resumes: bool) -> None:
        """Count an attach of ``name``. Raises ``AttachRejected`` if there were too many lately."""
        self._attaches.spend(name, self._monotonic(), resumes=resumes)

    def check_duplicate(self, name: str, hello: Hello) -> None:
        """Raises ``AttachRejected`` if two agents take this node from each other; the one here stays.

        One that is in grace does not: it may be the agent that the other one replaces.
        """
        node, now = self._attached.get(name), self._monotonic()
        if node is None or node.link is None or _is_same_run(node.link, hello):
            return
        link = node.link
        alive = node.category is StateCategory.REACHABLE
        other_boot = link.boot != hello.boot
        if not alive or not self._duplicates.must_refuse(name, hello.instance, now, other_boot=other_boot):
            return
        detail = _why_duplicate(name, link.peer_address, other_boot=other_boot)
        if self._duplicates.is_news(name, now):
            self._tell(EventKind.DUPLICATE, name, link.session_id, Reason.DUPLICATE_NODE, detail)
        raise AttachRejected(Rejected(Reason.DUPLICATE_NODE, detail, int(RETRY_SECONDS * 1000)))

    def is_duplicate(self, node: Node) -> bool:
        """Whether a second agent tried to be this node within the last minutes."""
        return self._duplicates.is_duplicate(node.name, self._monotonic())

    def note_lost(self, link: Session, loss: Loss) -> None:
        """The link has no carrier any more, and its grace began."""
        self._tell(EventKind.LOST, link.node, link.session_id, loss.reason, loss.detail)
        node = self._attached.get(link.node)
        if node is not None and node.link is link:
            self._see_last(node, loss.reason)

    def note_resumed(self, link: Session) -> None:
        """The session goes on over a new carrier."""
        self._tell(EventKind.RESUMED, link.node, link.session_id, detail=f"from {link.peer_address}")
        node = self._attached.get(link.node)
        if node is not None and node.link is link:
            node.address, node.since = link.peer_address, self._wall()
            node.last_reason = None

    def _see_last(self, node: Node, reason: Reason) -> None:
        node.since = node.last_seen_at = self._wall()
        node.last_seen = self._monotonic()
        node.last_reason = reason

    def _claim_alias(self, alias: str, name: str) -> None:
        owner = self._by_alias.get(alias, name)
        if owner in self._attached and owner != name:
            raise Refused(
                Reason.AMBIGUOUS_NAME,
                f"node {name} has the same alias {alias} as the attached node {owner}; rename one of them",
            )
        self._by_alias[alias] = name

    def learn(
        self,
        name: str,
        *,
        known_at: datetime | None = None,
        last_seen_at: datetime | None = None,
        reason: Reason | None = None,
    ) -> None:
        """Makes ``name`` a node without a session, unless it is known already.

        The store knows it, or it just got a certificate. ``known_at`` None: now.
        """
        if self._named(name) is not None:
            return
        alias, now = node_alias(name), self._wall()
        since = last_seen_at or known_at or now
        seen = None if last_seen_at is None else self._monotonic() - (now - last_seen_at).total_seconds()
        self._by_alias.setdefault(alias, name)
        self._gone[name] = Node(name, alias, None, since, since, seen, last_seen_at, last_reason=reason)
        self._forget_old()

    def forget(self, name: str) -> None:
        """Removes a node that has no session. Raises ``Refused`` while it has one."""
        self.require_detached(name)
        self._drop(name)
        self.events.add(EventKind.FORGOTTEN, name, "")

    def require_detached(self, name: str) -> None:
        """Raises ``Refused`` if the node has a session, be it in grace."""
        if name in self._attached:
            cure = f"stop it, or shut it out: qanat-server node revoke {name}"
            raise Refused(Reason.BAD_REQUEST, f"node {name} has an agent attached; {cure}")

    def _drop(self, name: str) -> None:
        node = self._gone.pop(name, None)
        if node is not None and self._by_alias.get(node.alias) == name:
            del self._by_alias[node.alias]

    def _end_old(self, old: Node, new_link: Session) -> None:
        if old.link is None or old.link is new_link:
            return
        link, old.link = old.link, None
        if link.instance != new_link.instance:
            self._duplicates.note_replaced(old.name, link.instance, self._monotonic())
        if link.boot != new_link.boot:
            self._duplicates.note_takeover(old.name, self._monotonic())
        reason, detail = _why_replaced(link, new_link)
        self._tell(EventKind.TAKEN_OVER, old.name, link.session_id, reason, detail)
        link.end(reason, detail)

    def detach(self, link: Session, reason: Reason, detail: str = "") -> None:
        """Notes that ``link`` ended. A link that another one has replaced changes nothing."""
        node = self._attached.get(link.node)
        if node is None or node.link is not link:
            return
        node.link = None
        if link.lost is None:
            self._see_last(node, reason)
        else:  # nobody was there since
            node.last_reason = reason
        del self._attached[node.name]
        self._gone[node.name] = node
        kind = EventKind.EXPIRED if reason is Reason.GRACE_EXPIRED else EventKind.ENDED
        self._tell(kind, node.name, link.session_id, reason, detail)
        self._forget_old()

    def _forget_old(self) -> None:
        while len(self._gone) > self._most_gone:
            self._drop(next(iter(self._gone)))

    def all(self) -> list[Node]:
        """Every known node by name, those that are gone included."""
        return sorted([*self._attached.values(), *self._gone.values()], key=lambda node: node.name)

    def attached(self) -> list[tuple[Node, Session]]:
        """The nodes that have an agent, each with its link."""
        return [(node, node.link) for node in self._attached.values() if node.link is not None]

    def is_attached(self, name: str) -> bool:
        """Whether the node of this full name has a session, be it in grace."""
        return name in self._attached

    @property
    def count(self) -> int:
        """Every known node, those that are gone included."""
        return len(self._attached) + len(self._gone)

    @property
    def attached_count(self) -> int:
        return len(self._attached)

    def find_exact(self, name: str) -> Node | None:
        """The node of this full name; aliases are not looked at."""
        return self._named(name)

    def find(self, text: str) -> Node | None:
        """The node of this name or alias.

        Raises ``Refused(AMBIGUOUS_NAME)`` if it is one node's name and another's alias.
        """
        named, aliased = self._named(text), self.find_alias(text)
        if named and aliased and named is not aliased:
            raise Refused(
                Reason.AMBIGUOUS_NAME,
                f"{text} is the name of one node and the alias of {aliased.name}; "
                f"say {named.alias} or {aliased.name} instead",
            )
        return named or aliased

    def find_alias(self, alias: str) -> Node | None:
        """The node of this alias; web hosts know aliases only."""
        return self._named(self._by_alias.get(alias, ""))

    def _named(self, name: str) -> Node | None:
        return self._attached.get(name) or self._gone.get(name)

    def name_of(self, text: str) -> str | None:
        """The full name of the node that ``text`` means, as ``routing`` asks for it."""
        node = self.find(text)
        return None if node is None else node.name

    def nearest(self, text: str) -> str | None:
        """The known name most like ``text``, or None if none is near."""
        names: Iterable[str] = itertools.chain(self._attached, self._gone)
        similar = itertools.islice((name for name in names if abs(len(name) - len(text)) <= 3), _MAX_COMPARED)
        return next(iter(difflib.get_close_matches(text, list(similar), n=1)), None)

    def link_of(self, name: str) -> Session:
        """The link that serves the node of this full name; raises ``Refused`` saying what is known."""
        node = self._named(name)
        if node is None:
            raise Refused(Reason.UNKNOWN_NODE, unknown_node(name, self.nearest(name)))
        if node.link is None:
            raise self._why_no_link(node)
        return node.link

    def _why_no_link(self, node: Node) -> Refused:
        if self.is_revoked(node.name):
            cure = f"it comes back only with a new token: qanat-server token create --node {node.name}"
            return Refused(Reason.REVOKED, f"node {node.name} was revoked; {cure}")
        return Refused(Reason.NODE_NOT_ATTACHED, self._not_attached(node))

    def _not_attached(self, node: Node) -> str:
        if node.last_seen is None:
            return f"node {node.name} has never attached; start its agent there: qanat-agent run"
        age = ago(self._monotonic() - node.last_seen)
        why = f" ({node.last_reason.meaning})" if node.last_reason else ""
        return f"node {node.name} has no agent attached; last seen {age}{why}"


def _is_same_run(link: Session, hello: Hello) -> bool:
    return link.boot == hello.boot and link.instance == hello.instance


def _why_duplicate(name: str, address: str, *, other_boot: bool) -> str:
    """The sentence for the agent that is not let in. Its machine may be the other one's, in a container."""
    where = "another machine" if other_boot else "another agent on this machine, perhaps in a container,"
    return f"{where} is attached as {name} from {address}; give each agent a bundle of its own"


def _why_replaced(old: Session, new: Session) -> tuple[Reason, str]:
    """A lost link whose agent comes back as another run of the program was restarted."""
    if old.state.category is StateCategory.WAITING and old.instance != new.instance:
        return Reason.AGENT_RESTARTED, f"the agent of node {new.node} restarted"
    return Reason.TAKEN_OVER, f"a newer session of node {new.node} came from {new.peer_address}"


def unknown_node(text: str, nearest: str | None) -> str:
    """The sentence for a name that no node has."""
    hint = f"nearest: {nearest}" if nearest else "`qanat nodes` lists the known ones"
    return f"no node {text} is known here; {hint}"
