"""Records of streams: who opened what, when, through which entrance, and how it ended. SQL for a connection.

A record has no detail of its own, because a sentence may quote what a user or a target has sent. The records
have a table apart from the audit, so that streams push out no act of an administrator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tunnel_server.store.database import Connection, Row
from tunnel_server.store.timestamps import DAY, iso_of

MAX_LISTED = 1000
USER_SHARE = 4
"""Part of the records that one user may have, because each user causes records. Beyond this share a user
pushes out own records only."""


class StreamRecord(NamedTuple):
    """One stream that has ended. Times are in milliseconds since 1970; ``grant`` is the id of its grant.

    A stream that the agent did not open has the ``address`` "" and no bytes.
    """

    opened_at: int
    ended_at: int
    stream: str
    user: str
    node: str
    target: str
    address: str
    entrance: str
    source: str
    grant: str
    reason: str
    bytes_to_target: int
    bytes_to_user: int


@dataclass(frozen=True, slots=True)
class StreamQuery:
    """Selection of records by the time of their end; an empty field selects all. ``until`` is exclusive."""

    user: str = ""
    node: str = ""
    entrance: str = ""
    since: int = 0
    until: int = 2**62
    before: int = 2**62
    """Only records with a number below this, to read further back."""
    most: int = MAX_LISTED


def add(connection: Connection, records: Sequence[StreamRecord]) -> None:
    """Insert records."""
    connection.executemany(
        "INSERT INTO streams (opened_at, ended_at, stream, user, node, target, address, entrance, source,"
        " allowed_by, reason, bytes_to_target, bytes_to_user) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        records,
    )


def find(connection: Connection, query: StreamQuery) -> list[dict[str, Any]]:
    """Return the newest records that match ``query`` as JSON, newest last."""
    rows = connection.execute(
        "SELECT * FROM streams WHERE number < :before AND ended_at >= :since AND ended_at < :until"
        " AND (:user = '' OR user = :user) AND (:node = '' OR node = :node)"
        " AND (:entrance = '' OR entrance = :entrance) ORDER BY number DESC LIMIT :most",
        {
            "user": query.user,
            "node": query.node,
            "entrance": query.entrance,
            "since": query.since,
            "until": query.until,
            "before": query.before,
            "most": min(query.most, MAX_LISTED),
        },
    ).fetchall()
    return [_as_json(row) for row in reversed(rows)]


def _as_json(row: Row) -> dict[str, Any]:
    words = ("stream", "user", "node", "target", "address", "entrance", "source")
    return {
        "number": row["number"],
        "opened": iso_of(row["opened_at"]),
        "ended": iso_of(row["ended_at"]),
        "seconds": (row["ended_at"] - row["opened_at"]) / 1000,
        **{name: row[name] for name in words},
        "grant": row["allowed_by"] or None,
        "reason": row["reason"],
        "bytes_to_target": row["bytes_to_target"],
        "bytes_to_user": row["bytes_to_user"],
    }


def prune(
    connection: Connection, now: int, *, keep: int, keep_days: Mapping[str, float], days: float, most: int
) -> int:
    """Remove records that are too old or too many, and return their number.

    ``keep_days`` has the days of entrances, and ``days`` those of all others. One call removes up to a few
    times ``most``.
    """
    removed = _prune_shares(connection, max(1, keep // USER_SHARE), most)
    removed += connection.execute(
        "DELETE FROM streams WHERE number IN (SELECT number FROM streams WHERE number <="
        " (SELECT number FROM streams ORDER BY number DESC LIMIT 1 OFFSET ?) ORDER BY number LIMIT ?)",
        (keep, most),
    ).rowcount
    for entrance in _entrances(connection):
        oldest = now - int(keep_days.get(entrance, days) * DAY)
        removed += connection.execute(
            "DELETE FROM streams WHERE number IN (SELECT number FROM streams"
            " WHERE entrance = ? AND ended_at < ? LIMIT ?)",
            (entrance, oldest, most),
        ).rowcount
    return removed


def _entrances(connection: Connection) -> Iterable[str]:
    return [row["entrance"] for row in connection.execute("SELECT DISTINCT entrance FROM streams")]


def _prune_shares(connection: Connection, keep: int, most: int) -> int:
    """Remove records beyond a user's share. Check only users with new records: no other share has grown."""
    recent = connection.execute(
        "SELECT DISTINCT user FROM (SELECT user FROM streams ORDER BY number DESC LIMIT ?)", (most,)
    ).fetchall()
    return sum(
        connection.execute(
            "DELETE FROM streams WHERE number IN (SELECT number FROM streams WHERE user = :user"
            " AND number <= (SELECT number FROM streams WHERE user = :user ORDER BY number DESC"
            " LIMIT 1 OFFSET :keep) LIMIT :most)",
            {"user": row["user"], "keep": keep, "most": most},
        ).rowcount
        for row in recent
    )
