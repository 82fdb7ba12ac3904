"""Registry of nodes: their sessions, and what the server remembers of nodes without a session. No I/O.

At the start of the server the registry holds the nodes that the store knows, all without a session. It drops
a node by ``forget``, or when more nodes without a session exist than it remembers.
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
# difflib takes about 10 us a name, and a mistyped name must not block the event loop of 5,000 nodes.
_MAX_COMPARED = 300


@dataclass(slots=True)
class Node:
    """One node as this server knows it. ``session`` is None when no session is left, not even in grace.

    ``last_seen`` (monotonic seconds) and ``last_seen_at`` (UTC) date the loss or the end of the newest
    session. They are None if no agent of this node ever attached; ``since`` is then when the node became
    known.
    """

    name: str
    alias: str
    session: Session | None
    since: datetime  # attached or resumed, lost, or gone
    session_since: datetime
    last_seen: float | None
    last_seen_at: datetime | None
    address: str = ""
    software: str = ""
    last_reason: Reason | None = None  # of the last loss or end, until the node attaches or resumes

    @property
    def state(self) -> str:
        """The state that a request for this node would find: a word of ``SessionState``, or ``gone``."""
        if self.session is None or self.session.state.category is StateCategory.ABSENT:
            return GONE
        return str(self.session.state.value)

    @property
    def category(self) -> StateCategory:
        """The category of the session's state; ``ABSENT`` without a session."""
        return StateCategory.ABSENT if self.session is None else self.session.state.category


class Nodes:
    """The registry. ``monotonic`` gives seconds for ages, ``wall`` the UTC time shown to people.

    ``is_revoked`` returns whether a node's name was revoked and no newer certificate readmits the node.
    ``most_gone`` bounds the nodes without a session.
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
        """Budget of the events and log lines that each node may cause."""
        self._most_gone = most_gone
        self._attaches = AttachBudget()
        self._takeovers = TakeoverLimiter()
        self._monotonic = monotonic
        self._wall = wall
        self._attached: dict[str, Node] = {}
        self._gone: dict[str, Node] = {}  # oldest first
        self._by_alias: dict[str, str] = {}

    def attach(self, name: str, session: Session) -> Node:
        """Serve node ``name`` by ``session`` from now on; an older session ends with ``TAKEN_OVER`` at once.

        Call this after the agent has sent `use`, not for a mere hello. The newest session wins even if the
        old one looks healthy, because a half-open connection looks healthy too.

        Raises ``Refused(AMBIGUOUS_NAME)`` if another attached node has the same alias.
        """
        alias = node_alias(name)
        self._claim_alias(alias, name)
        old = self._attached.get(name)
        now = self._wall()
        node = Node(
            name, alias, session, now, now, self._monotonic(), now, session.peer_address, session.software
        )
        self._gone.pop(name, None)
        self._attached[name] = node
        if old is not None:
            self._end_replaced(old, session)
        self._add_event(EventKind.ATTACHED, name, session.session_id, detail=f"from {session.peer_address}")
        return node

    def _add_event(
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
        """Raise ``AttachRejected`` if two agents take this node from each other; the attached agent stays.

        A session in grace refuses no newcomer, because the newcomer may be the restarted agent.
        """
        node, now = self._attached.get(name), self._monotonic()
        if node is None or node.session is None or _is_same_run(node.session, hello):
            return
        session = node.session
        alive = node.category is StateCategory.REACHABLE
        other_boot = session.boot != hello.boot
        if not alive or not self._takeovers.must_refuse(name, hello.instance, now, other_boot=other_boot):
            return
        detail = _why_duplicate(name, session.peer_address, other_boot=other_boot)
        if self._takeovers.is_news(name, now):
            self._add_event(EventKind.DUPLICATE, name, session.session_id, Reason.DUPLICATE_NODE, detail)
        raise AttachRejected(Rejected(Reason.DUPLICATE_NODE, detail, int(RETRY_SECONDS * 1000)))

    def is_duplicate(self, node: Node) -> bool:
        """Whether the server refused a second agent of this node within the last two minutes."""
        return self._takeovers.is_duplicate(node.name, self._monotonic())

    def note_lost(self, session: Session, loss: Loss) -> None:
        """Record that the session lost its carrier, and that its grace began."""
        self._add_event(EventKind.LOST, session.node, session.session_id, loss.reason, loss.detail)
        node = self._attached.get(session.node)
        if node is not None and node.session is session:
            self._set_last_seen(node, loss.reason)

    def note_resumed(self, session: Session) -> None:
        """Record that the session continues on a new carrier."""
        self._add_event(
            EventKind.RESUMED, session.node, session.session_id, detail=f"from {session.peer_address}"
        )
        node = self._attached.get(session.node)
        if node is not None and node.session is session:
            node.address, node.since = session.peer_address, self._wall()
            node.last_reason = None

    def _set_last_seen(self, node: Node, reason: Reason) -> None:
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
        """Add ``name`` as a node without a session, unless the registry has it.

        The node is one from the store, or one that just received a certificate. ``known_at`` None stands for
        now.
        """
        if self._named(name) is not None:
            return
        alias, now = node_alias(name), self._wall()
        since = last_seen_at or known_at or now
        seen = None if last_seen_at is None else self._monotonic() - (now - last_seen_at).total_seconds()
        self._by_alias.setdefault(alias, name)
        self._gone[name] = Node(name, alias, None, since, since, seen, last_seen_at, last_reason=reason)
        self._drop_excess()

    def forget(self, name: str) -> None:
        """Remove a node. Raises ``Refused`` while the node has a session."""
        self.require_detached(name)
        self._drop(name)
        self.events.add(EventKind.FORGOTTEN, name, "")

    def require_detached(self, name: str) -> None:
        """Raise ``Refused`` if the node has a session, in grace or not."""
        if name in self._attached:
            cure = f"stop that agent, or revoke the node: qanat-server node revoke {name}"
            raise Refused(Reason.BAD_REQUEST, f"node {name} has an agent attached; {cure}")

    def _drop(self, name: str) -> None:
        node = self._gone.pop(name, None)
        if node is not None and self._by_alias.get(node.alias) == name:
            del self._by_alias[node.alias]

    def _end_replaced(self, old: Node, new_session: Session) -> None:
        if old.session is None or old.session is new_session:
            return
        session, old.session = old.session, None
        if session.instance != new_session.instance:
            self._takeovers.note_replaced(old.name, session.instance, self._monotonic())
        if session.boot != new_session.boot:
            self._takeovers.note_takeover(old.name, self._monotonic())
        reason, detail = _why_replaced(session, new_session)
        self._add_event(EventKind.TAKEN_OVER, old.name, session.session_id, reason, detail)
        session.end(reason, detail)

    def detach(self, session: Session, reason: Reason, detail: str = "") -> None:
        """Record that ``session`` ended. The end of a replaced session changes nothing."""
        node = self._attached.get(session.node)
        if node is None or node.session is not session:
            return
        node.session = None
        if session.lost is None:
            self._set_last_seen(node, reason)
        else:  # the agent was last seen when the session lost its carrier
            node.last_reason = reason
        del self._attached[node.name]
        self._gone[node.name] = node
        kind = EventKind.EXPIRED if reason is Reason.GRACE_EXPIRED else EventKind.ENDED
        self._add_event(kind, node.name, session.session_id, reason, detail)
        self._drop_excess()

    def _drop_excess(self) -> None:
        while len(self._gone) > self._most_gone:
            self._drop(next(iter(self._gone)))

    def all(self) -> list[Node]:
        """Return every known node, sorted by name, with those that have no session."""
        return sorted([*self._attached.values(), *self._gone.values()], key=lambda node: node.name)

    def attached(self) -> list[tuple[Node, Session]]:
        """Return the nodes that have a session, each with its session."""
        return [(node, node.session) for node in self._attached.values() if node.session is not None]

    def is_attached(self, name: str) -> bool:
        """Whether the node of this full name has a session, in grace or not."""
        return name in self._attached

    @property
    def count(self) -> int:
        """The number of known nodes, with those that have no session."""
        return len(self._attached) + len(self._gone)

    @property
    def attached_count(self) -> int:
        """The number of nodes that have a session, in grace or not."""
        return len(self._attached)

    def find_exact(self, name: str) -> Node | None:
        """Return the node of this full name, or None. Aliases are ignored."""
        return self._named(name)

    def find(self, text: str) -> Node | None:
        """Return the node of this name or alias, or None.

        Raises ``Refused(AMBIGUOUS_NAME)`` if ``text`` is the name of one node and the alias of another.
        """
        named = self._named(text)
        alias = self._by_alias.get(text)
        if alias is None or (named is not None and alias == named.name):
            return named
        aliased = self._named(alias)
        if named and aliased and named is not aliased:
            raise Refused(
                Reason.AMBIGUOUS_NAME,
                f"{text} is the name of one node and the alias of {aliased.name}; "
                f"use {named.alias} or {aliased.name} instead",
            )
        return named or aliased

    def find_alias(self, alias: str) -> Node | None:
        """Return the node of this alias, or None. Host names of the web entrance contain only aliases."""
        return self._named(self._by_alias.get(alias, ""))

    def _named(self, name: str) -> Node | None:
        return self._attached.get(name) or self._gone.get(name)

    def name_of(self, text: str) -> str | None:
        """Return the full name of the node of this name or alias, or None. Raises as ``find``."""
        node = self.find(text)
        return None if node is None else node.name

    def nearest(self, text: str) -> str | None:
        """Return the known name most like ``text``, or None if no name is similar."""
        names: Iterable[str] = itertools.chain(self._attached, self._gone)
        similar = itertools.islice((name for name in names if abs(len(name) - len(text)) <= 3), _MAX_COMPARED)
        return next(iter(difflib.get_close_matches(text, list(similar), n=1)), None)

    def session_of(self, name: str) -> Session:
        """Return the session of the node of this full name.

        Raises ``Refused`` with ``UNKNOWN_NODE``, ``REVOKED`` or ``NODE_NOT_ATTACHED``; its detail states the
        cause.
        """
        node = self._named(name)
        if node is None:
            raise Refused(Reason.UNKNOWN_NODE, unknown_node(name, self.nearest(name)))
        if node.session is None:
            raise self._why_no_session(node)
        return node.session

    def _why_no_session(self, node: Node) -> Refused:
        if self.is_revoked(node.name):
            cure = f"it comes back only with a new token: qanat-server token create --node {node.name}"
            return Refused(Reason.REVOKED, f"node {node.name} was revoked; {cure}")
        return Refused(Reason.NODE_NOT_ATTACHED, self._not_attached(node))

    def _not_attached(self, node: Node) -> str:
        if node.last_seen is None:
            return f"node {node.name} has never attached; start its agent there: qanat-agent run"
        age = ago(self._monotonic() - node.last_seen)
        cause = f" ({node.last_reason.meaning})" if node.last_reason else ""
        return f"node {node.name} has no agent attached; last seen {age}{cause}"


def _is_same_run(session: Session, hello: Hello) -> bool:
    return session.boot == hello.boot and session.instance == hello.instance


def _why_duplicate(name: str, address: str, *, other_boot: bool) -> str:
    """Return the sentence for the refused agent. Containers share the boot id of their host."""
    where = "another machine" if other_boot else "another agent on this machine, perhaps in a container,"
    return f"{where} is attached as {name} from {address}; give each agent a bundle of its own"


def _why_replaced(old: Session, new: Session) -> tuple[Reason, str]:
    """Return the reason and the sentence for the end of ``old``.

    The agent has restarted if ``old`` had no carrier, and ``new`` comes from another run of the program.
    """
    if old.state.category is StateCategory.WAITING and old.instance != new.instance:
        return Reason.AGENT_RESTARTED, f"the agent of node {new.node} restarted"
    return Reason.TAKEN_OVER, f"a newer session of node {new.node} came from {new.peer_address}"


def unknown_node(text: str, nearest: str | None) -> str:
    """Return the sentence for a name that no node has. ``nearest`` is the most similar known name."""
    hint = f"nearest: {nearest}" if nearest else "`qanat nodes` lists the known ones"
    return f"no node {text} is known here; {hint}"
