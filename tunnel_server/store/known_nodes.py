"""Nodes that this server knows: each has a certificate of this server, or its agent attached once.

SQL inside transactions of the caller. ``tunnel_server.nodes.registry`` is the live view, in memory.

1. A certificate makes its node known. An event of the node updates the time when it was last seen.
2. While agents are attached, ``refresh_last_seen`` writes the time for all attached nodes at once. A server
   that is killed therefore leaves times that are minutes old, not days.
3. ``forget`` removes a node. ``prune`` removes nodes that had neither a certificate nor an agent for 90 days.
   Beyond the bound it also removes the nodes that were not seen for the longest time.
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
_ARRIVALS = (EventKind.ATTACHED, EventKind.RESUMED)
_DEPARTURES = (EventKind.LOST, EventKind.EXPIRED, EventKind.ENDED)


@dataclass(frozen=True, slots=True)
class KnownNode:
    """A known node. ``last_seen_at`` is None if no agent ever attached; ``reason`` is of the last end."""

    name: str
    known_at: datetime
    last_seen_at: datetime | None
    reason: Reason | None


def add(connection: Connection, name: str, now: int) -> None:
    """Add the node ``name``. A node that is known already stays as it is."""
    connection.execute("INSERT OR IGNORE INTO nodes (name, known_at) VALUES (?, ?)", (name, now))


def note_events(connection: Connection, events: Iterable[NodeEvent]) -> None:
    """Update the nodes of these events, in the order of the events."""
    for event in events:
        if event.kind in _ARRIVALS:
            connection.execute(
                "INSERT INTO nodes (name, known_at, last_seen_at, is_attached) VALUES (:name, :at, :at, 1)"
                " ON CONFLICT (name) DO UPDATE SET last_seen_at = :at, is_attached = 1, reason = ''",
                {"name": event.node, "at": to_ms(event.at)},
            )
        elif event.kind in _DEPARTURES:
            # The agent was last seen at the loss, so the end of a lost session leaves that time as it is.
            connection.execute(
                "UPDATE nodes SET last_seen_at = CASE WHEN is_attached THEN :at ELSE last_seen_at END,"
                " is_attached = 0, reason = :reason WHERE name = :name",
                {"name": event.node, "at": to_ms(event.at), "reason": _word(event)},
            )
        elif event.kind is EventKind.FORGOTTEN:
            forget(connection, event.node)


def _word(event: NodeEvent) -> str:
    return event.reason.word if event.reason else ""


def refresh_last_seen(connection: Connection, now: int) -> None:
    """Record that every attached node is seen now."""
    connection.execute("UPDATE nodes SET last_seen_at = ? WHERE is_attached", (now,))


def detach_all(connection: Connection) -> None:
    """Record that no agent is attached. For the start of a server, before which none was running."""
    connection.execute("UPDATE nodes SET is_attached = 0 WHERE is_attached")


def is_known(connection: Connection, name: str) -> bool:
    """Whether the table has this node."""
    return connection.execute("SELECT 1 FROM nodes WHERE name = ?", (name,)).fetchone() is not None


def names(connection: Connection) -> list[str]:
    """Return the names of all nodes, sorted."""
    return [row["name"] for row in connection.execute("SELECT name FROM nodes ORDER BY name")]


def listed(connection: Connection) -> list[KnownNode]:
    """Return all nodes, the most recently seen last."""
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
    """Remove a node, and return whether it was known. Its certificates, events and audit lines stay."""
    return connection.execute("DELETE FROM nodes WHERE name = ?", (name,)).rowcount > 0


def prune(connection: Connection, now: int, *, keep: int, most: int) -> list[str]:
    """Remove up to ``most`` nodes that are too old, or beyond ``keep``; an attached node is never removed.

    Returns the names of the removed nodes.
    """
    rows = connection.execute(
        "SELECT name FROM nodes WHERE NOT is_attached AND coalesce(last_seen_at, known_at) < :before"
        " AND NOT EXISTS (SELECT 1 FROM certificates WHERE role = 'node' AND certificates.name = nodes.name)"
        " UNION SELECT name FROM (SELECT name FROM nodes WHERE NOT is_attached"
        " ORDER BY coalesce(last_seen_at, known_at) DESC, name LIMIT -1 OFFSET :keep) LIMIT :most",
        {"before": now - KEEP_UNSEEN, "keep": keep, "most": most},
    )
    removed = [row["name"] for row in rows.fetchall()]
    connection.executemany("DELETE FROM nodes WHERE name = ?", [(name,) for name in removed])
    return removed
