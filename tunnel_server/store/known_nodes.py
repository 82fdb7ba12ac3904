"""Nodes that this server knows: names that have a certificate of ours, or whose agent attached once.

SQL inside transactions of the caller's. ``tunnel_server.nodes.registry`` is the live view, in memory.

1. A certificate makes its node known. An event of the node updates when it was last seen.
2. While an agent is attached, ``see_attached`` writes the time for all attached nodes at once, so that a
   server that is killed leaves times which are minutes old, not days.
3. A node is forgotten by ``forget``; by ``prune``, when neither a certificate nor an agent of it was there
   for 90 days; and beyond the bound, those that were not seen for the longest time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from tunnel_core.reasons import Reason
from tunnel_server.events.event_log import EventKind, NodeEvent
from tunnel_server.store.database import Connection
from tunnel_server.store.timestamps import DAY, from_ms, to_ms

KEEP_UNSEEN = 90 * DAY
"""Time for which the store knows a node that has neither a certificate nor an agent."""
_COMES = (EventKind.ATTACHED, EventKind.RESUMED)
_GOES = (EventKind.LOST, EventKind.EXPIRED, EventKind.ENDED)


@dataclass(frozen=True, slots=True)
class KnownNode:
    """``last_seen_at`` is None if no agent ever attached; ``reason`` says why the last one left."""

    name: str
    known_at: datetime
    last_seen_at: datetime | None
    reason: Reason | None


def add(connection: Connection, name: str, now: int) -> None:
    """Makes ``name`` known. A node that is known already stays as it is."""
    connection.execute("INSERT OR IGNORE INTO nodes (name, known_at) VALUES (?, ?)", (name, now))


def note_events(connection: Connection, events: Iterable[NodeEvent]) -> None:
    """Updates the nodes of these events, in their order."""
    for event in events:
        if event.kind in _COMES:
            connection.execute(
                "INSERT INTO nodes (name, known_at, last_seen_at, is_attached) VALUES (:name, :at, :at, 1)"
                " ON CONFLICT (name) DO UPDATE SET last_seen_at = :at, is_attached = 1, reason = ''",
                {"name": event.node, "at": to_ms(event.at)},
            )
        elif event.kind in _GOES:
            # After a loss the agent was not seen again, so the end of that session does not count as a sight.
            connection.execute(
                "UPDATE nodes SET last_seen_at = CASE WHEN is_attached THEN :at ELSE last_seen_at END,"
                " is_attached = 0, reason = :reason WHERE name = :name",
                {"name": event.node, "at": to_ms(event.at), "reason": _word(event)},
            )
        elif event.kind is EventKind.FORGOTTEN:
            forget(connection, event.node)


def _word(event: NodeEvent) -> str:
    return event.reason.word if event.reason else ""


def see_attached(connection: Connection, now: int) -> None:
    """Every node that is attached was seen now."""
    connection.execute("UPDATE nodes SET last_seen_at = ? WHERE is_attached", (now,))


def detach_all(connection: Connection) -> None:
    """No agent is attached, since no server was running."""
    connection.execute("UPDATE nodes SET is_attached = 0 WHERE is_attached")


def is_known(connection: Connection, name: str) -> bool:
    return connection.execute("SELECT 1 FROM nodes WHERE name = ?", (name,)).fetchone() is not None


def names(connection: Connection) -> list[str]:
    return [row["name"] for row in connection.execute("SELECT name FROM nodes ORDER BY name")]


def listed(connection: Connection) -> list[KnownNode]:
    """All of them, those that were seen last at the end."""
    rows = connection.execute("SELECT * FROM nodes ORDER BY coalesce(last_seen_at, known_at), name")
    return [
        KnownNode(
            row["name"],
            from_ms(row["known_at"]),
            None if row["last_seen_at"] is None else from_ms(row["last_seen_at"]),
            Reason[row["reason"].upper()] if row["reason"].upper() in Reason.__members__ else None,
        )
        for row in rows
    ]


def forget(connection: Connection, name: str) -> bool:
    """Returns whether the node was known. Its certificates, events and audit lines stay."""
    return connection.execute("DELETE FROM nodes WHERE name = ?", (name,)).rowcount > 0


def prune(connection: Connection, now: int, *, keep: int, most: int) -> int:
    """Forgets up to ``most`` nodes that are too old, or more than ``keep``; never one that is attached."""
    return connection.execute(
        "DELETE FROM nodes WHERE name IN ("
        " SELECT name FROM nodes WHERE NOT is_attached AND coalesce(last_seen_at, known_at) < :before"
        " AND NOT EXISTS (SELECT 1 FROM certificates WHERE role = 'node' AND certificates.name = nodes.name)"
        " UNION SELECT name FROM (SELECT name FROM nodes WHERE NOT is_attached"
        " ORDER BY coalesce(last_seen_at, known_at) DESC, name LIMIT -1 OFFSET :keep) LIMIT :most)",
        {"before": now - KEEP_UNSEEN, "keep": keep, "most": most},
    ).rowcount
