"""Events of nodes in the store. SQL for a connection of the caller.

``tunnel_server.events.event_log`` holds the newest events in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunnel_core.reasons import Reason
from tunnel_server.events.event_log import EventKind, NodeEvent
from tunnel_server.store.database import Connection, Row
from tunnel_server.store.timestamps import from_ms, to_ms

KEEP_EVENTS = 100_000
"""Events of nodes in the store."""
KEEP_EVENTS_OF_NODE = 1000
"""Events of one kind of one node in the store. Beyond this
number a node pushes out its own oldest events, and no others."""
MAX_LISTED = 1000


def add(connection: Connection, events: Sequence[NodeEvent]) -> None:
    """Insert events. An event whose id is in the table stays as it is."""
    connection.executemany(
        "INSERT OR IGNORE INTO node_events (id, at, kind, node, session, reason, detail)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [_values(event) for event in events],
    )
    for node, kind in {(event.node, event.kind) for event in events}:
        connection.execute(
            "DELETE FROM node_events WHERE node = :node AND kind = :kind AND id <= (SELECT id"
            " FROM node_events WHERE node = :node AND kind = :kind ORDER BY id DESC LIMIT 1 OFFSET :most)",
            {"node": node, "kind": kind.value, "most": KEEP_EVENTS_OF_NODE},
        )


def _values(event: NodeEvent) -> tuple[Any, ...]:
    reason = event.reason.word if event.reason else ""
    return (
        *(event.id, to_ms(event.at), event.kind.value, event.node),
        *(event.session_id, reason, event.detail),
    )


def newest(connection: Connection, node: str = "", *, before: int = 2**62) -> list[NodeEvent]:
    """Return the newest events with an id below ``before``, oldest first. Empty ``node``: of all nodes."""
    rows = connection.execute(
        "SELECT * FROM node_events WHERE (:node = '' OR node = :node) AND id < :before"
        " ORDER BY id DESC LIMIT :most",
        {"node": node, "before": before, "most": MAX_LISTED},
    ).fetchall()
    return [_event(row) for row in reversed(rows)]


def newest_of_server(connection: Connection) -> NodeEvent | None:
    """Return the last start or stop of a server, or None."""
    row = connection.execute("SELECT * FROM node_events WHERE node = '' ORDER BY id DESC LIMIT 1").fetchone()
    return _event(row) if row else None


def _event(row: Row) -> NodeEvent:
    reason = Reason[row["reason"].upper()] if row["reason"].upper() in Reason.__members__ else None
    return NodeEvent(
        *(row["id"], from_ms(row["at"]), EventKind(row["kind"]), row["node"], row["session"]),
        *(reason, row["detail"]),
    )


def prune(connection: Connection, most: int) -> int:
    """Remove up to ``most`` of the oldest events beyond ``KEEP_EVENTS``, and return their number."""
    return connection.execute(
        "DELETE FROM node_events WHERE id IN (SELECT id FROM node_events WHERE id <="
        " (SELECT id FROM node_events ORDER BY id DESC LIMIT 1 OFFSET ?) ORDER BY id LIMIT ?)",
        (KEEP_EVENTS, most),
    ).rowcount
