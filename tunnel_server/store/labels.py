"""Labels of nodes that an administrator set on the server. SQL for a connection of the caller.

Grants select nodes by these labels alone: what an agent tells about itself widens nobody's access.
"""

from __future__ import annotations

from collections.abc import Mapping

from tunnel_core.reasons import Reason, Refused
from tunnel_server.store.audit import AuditKind, AuditLine
from tunnel_server.store.database import Connection
from tunnel_server.store.transaction import Transaction

MAX_LABELS = 32
"""Labels of a node, because each is in memory."""


def all_labels(connection: Connection) -> dict[str, dict[str, str]]:
    """Return the labels by node and key."""
    found: dict[str, dict[str, str]] = {}
    for row in connection.execute("SELECT * FROM node_labels ORDER BY node, key"):
        found.setdefault(row["node"], {})[row["key"]] = row["value"]
    return found


def of_node(connection: Connection, node: str) -> dict[str, str]:
    """Return the labels of a node."""
    rows = connection.execute("SELECT * FROM node_labels WHERE node = ? ORDER BY key", (node,))
    return {row["key"]: row["value"] for row in rows}


def change(transaction: Transaction, node: str, changes: Mapping[str, str | None], by: str) -> dict[str, str]:
    """Set labels, or remove those whose value is None, and return the labels of the node afterwards.

    Raises ``Refused`` with ``BAD_REQUEST`` for too many labels.
    """
    connection, before = transaction.connection, of_node(transaction.connection, node)
    after = {key: value for key, value in (before | dict(changes)).items() if value is not None}
    if len(after) > MAX_LABELS:
        raise Refused(Reason.BAD_REQUEST, f"a node has at most {MAX_LABELS} labels")
    if after == before:
        return before
    connection.execute("DELETE FROM node_labels WHERE node = ?", (node,))
    connection.executemany(
        "INSERT INTO node_labels VALUES (?, ?, ?)", [(node, key, value) for key, value in after.items()]
    )
    gone = [f"{key}-" for key in before if key not in after]
    new = [f"{key}={value}" for key, value in after.items() if before.get(key) != value]
    detail = ", ".join([*new, *gone])
    transaction.audit(AuditLine(AuditKind.NODE_LABELLED, node=node, done_by=by, detail=detail))
    return of_node(connection, node)
