"""Which node is attached by which link, and what is still known of nodes that are gone. No I/O."""

from __future__ import annotations

import difflib
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from tunnel_core.names import node_alias
from tunnel_core.reasons import Reason, Refused

if TYPE_CHECKING:
    from tunnel_core.link import Link

MAX_GONE = 10_000
GONE_SECONDS = 7 * 24 * 3600.0
MAX_EVENTS = 1_000
# difflib costs some 10 us a name; a mistyped name must not hold up the event loop of 5,000 nodes.
_MAX_COMPARED = 300


@dataclass(slots=True)
class Node:
    """One node as this server knows it. ``link`` is None while no agent is attached."""

    name: str
    alias: str
    link: Link | None
    since: datetime  # of the newest attach
    last_seen: float  # monotonic seconds; of the end of the newest link
    last_seen_at: datetime
    address: str = ""
    software: str = ""
    last_reason: Reason | None = None
    last_detail: str = ""


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """What happened to a node, for whoever follows the registry."""

    kind: str  # "attached", "lost" or "taken_over"
    node: str
    session_id: str
    at: datetime
    reason: Reason | None = None


class Nodes:
    """The registry. ``monotonic`` gives seconds for ages, ``wall`` the UTC time shown to people."""

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], datetime]) -> None:
        self.events: deque[NodeEvent] = deque(maxlen=MAX_EVENTS)
        self._monotonic = monotonic
        self._wall = wall
        self._attached: dict[str, Node] = {}
        self._gone: dict[str, Node] = {}  # oldest first
        self._by_alias: dict[str, str] = {}

    def attach(self, name: str, link: Link) -> Node:
        """Makes ``link`` the one that serves ``name``; an older link ends with ``TAKEN_OVER`` at once.

        Call it for a link whose agent proved to be alive, not for a mere hello: the newest proven
        session wins, however healthy the old one looks, because a half-open one looks healthy too.
        """
        alias = node_alias(name)
        self._claim_alias(alias, name)
        old = self._attached.get(name)
        now = self._wall()
        node = Node(name, alias, link, now, self._monotonic(), now, link.peer_address, link.software)
        self._gone.pop(name, None)
        self._attached[name] = node
        if old is not None:
            self._end_old(old, link)
        self._note("attached", node, link)
        return node

    def _claim_alias(self, alias: str, name: str) -> None:
        owner = self._by_alias.get(alias, name)
        if owner in self._attached and owner != name:
            raise Refused(
                Reason.AMBIGUOUS_NAME,
                f"node {name} has the same alias {alias} as the attached node {owner}; rename one of them",
            )
        self._gone.pop(owner, None)
        self._by_alias[alias] = name

    def _end_old(self, old: Node, new_link: Link) -> None:
        if old.link is None or old.link is new_link:
            return
        link, old.link = old.link, None
        self._note("taken_over", old, link, Reason.TAKEN_OVER)
        link.end(Reason.TAKEN_OVER, f"a newer session of node {old.name} came from {new_link.peer_address}")

    def detach(self, link: Link, reason: Reason, detail: str = "") -> None:
        """Notes that ``link`` ended. A link that another one has replaced changes nothing."""
        node = self._attached.get(link.node)
        if node is None or node.link is not link:
            return
        node.link = None
        node.last_seen, node.last_seen_at = self._monotonic(), self._wall()
        node.last_reason, node.last_detail = reason, detail
        del self._attached[node.name]
        self._gone[node.name] = node
        self._note("lost", node, link, reason)
        self._forget_old()

    def _note(self, kind: str, node: Node, link: Link, reason: Reason | None = None) -> None:
        self.events.append(NodeEvent(kind, node.name, link.session_id, self._wall(), reason))

    def _forget_old(self) -> None:
        horizon = self._monotonic() - GONE_SECONDS
        while self._gone:
            oldest = next(iter(self._gone.values()))
            if len(self._gone) <= MAX_GONE and oldest.last_seen >= horizon:
                return
            del self._gone[oldest.name], self._by_alias[oldest.alias]

    def all(self) -> list[Node]:
        """Every known node by name, those that are gone included."""
        self._forget_old()
        return sorted([*self._attached.values(), *self._gone.values()], key=lambda node: node.name)

    def attached(self) -> list[tuple[Node, Link]]:
        """The nodes that have an agent, each with its link."""
        return [(node, node.link) for node in self._attached.values() if node.link is not None]

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

    def link_of(self, name: str) -> Link:
        """The link that serves the node of this full name; raises ``Refused`` saying what is known."""
        node = self._named(name)
        if node is None:
            raise Refused(Reason.UNKNOWN_NODE, unknown_node(name, self.nearest(name)))
        if node.link is None:
            raise Refused(Reason.NODE_NOT_ATTACHED, self._not_attached(node))
        return node.link

    def _not_attached(self, node: Node) -> str:
        age = ago(self._monotonic() - node.last_seen)
        why = f" ({node.last_reason.meaning})" if node.last_reason else ""
        return f"node {node.name} has no agent attached; last seen {age}{why}"


def unknown_node(text: str, nearest: str | None) -> str:
    """The sentence for a name that no node has."""
    hint = f"nearest: {nearest}" if nearest else "`qanat nodes` lists the known ones"
    return f"no node {text} is known here; {hint}"


def ago(seconds: float) -> str:
    """An age for people: ``5 s ago``, ``3 min ago``, ``2 h ago``, ``4 days ago``."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size or (size == 60 and seconds >= size):
            return f"{int(seconds // size)} {unit} ago"
    return f"{max(0, int(seconds))} s ago"
