"""The audit of identities: each act, its subject and its actor. SQL for a connection of the caller.

Lines are added, and removed when they are old, but never changed. No line contains a secret: it has the id of
a token and the fingerprint of a key.

Nodes and strangers cause most lines, so their lines have shares of the room. All refusals together have a
tenth, because strangers cause them. The lines of one kind about one node or user have a hundredth. Only their
age, or later acts, remove the acts of administrators.
"""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any

from tunnel_server.store.database import Connection, Row
from tunnel_server.store.timestamps import iso_of

MAX_LISTED = 1000
_MAX_DETAIL = 512
_REFUSED_SHARE = 10
"""Part of the lines that refusals may have, because strangers cause them."""
_SHARE = 100
"""Part of the lines that one kind about one node or user may have, because others cause them."""
_LEAST_SHARE = 10


class AuditKind(enum.Enum):
    """The kind of an audit line. The values are words of the store, the file and the API."""

    ENROLLED = "enrolled"
    RENEWED = "renewed"
    ISSUED = "issued"
    REVOKED = "revoked"
    UNREVOKED = "unrevoked"
    FORGOTTEN = "forgotten"
    REFUSED = "refused"
    ENDED = "ended"
    TAKEOVER = "takeover"
    TOKEN_CREATED = "token_created"  # noqa: S105 - a word, no secret
    TOKEN_REVOKED = "token_revoked"  # noqa: S105
    CA_ROTATED = "ca_rotated"
    RESTORED = "restored"
    USER_ADDED = "user_added"
    USER_DISABLED = "user_disabled"
    USER_ENABLED = "user_enabled"
    PASSWORD_SET = "password_set"  # noqa: S105
    GROUP_ADDED = "group_added"
    GROUP_REMOVED = "group_removed"
    MEMBER_ADDED = "member_added"
    MEMBER_REMOVED = "member_removed"
    GRANT_ADDED = "grant_added"
    GRANT_CHANGED = "grant_changed"
    GRANT_REMOVED = "grant_removed"
    API_TOKEN_CREATED = "api_token_created"  # noqa: S105
    API_TOKEN_REVOKED = "api_token_revoked"  # noqa: S105
    NODE_LABELLED = "node_labelled"


ACTS = (
    *(
        AuditKind.ISSUED,
        AuditKind.REVOKED,
        AuditKind.UNREVOKED,
        AuditKind.FORGOTTEN,
        AuditKind.TOKEN_CREATED,
        AuditKind.TOKEN_REVOKED,
    ),
    *(AuditKind.CA_ROTATED, AuditKind.RESTORED),
    *(AuditKind.USER_ADDED, AuditKind.USER_DISABLED, AuditKind.USER_ENABLED, AuditKind.PASSWORD_SET),
    *(AuditKind.GROUP_ADDED, AuditKind.GROUP_REMOVED, AuditKind.MEMBER_ADDED, AuditKind.MEMBER_REMOVED),
    *(AuditKind.GRANT_ADDED, AuditKind.GRANT_CHANGED, AuditKind.GRANT_REMOVED),
    *(AuditKind.API_TOKEN_CREATED, AuditKind.API_TOKEN_REVOKED, AuditKind.NODE_LABELLED),
)
"""Acts of administrators. Nodes, users and strangers cause all other kinds."""


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One line. Its subject is ``node`` or ``user``, its actor ``done_by`` at the address ``source``."""

    kind: AuditKind
    node: str = ""
    user: str = ""
    done_by: str = ""
    source: str = ""
    serial: str = ""
    token: str = ""
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Selection of lines; an empty field selects all. Times are in milliseconds; ``until`` is exclusive."""

    node: str = ""
    user: str = ""
    kind: AuditKind | None = None
    since: int = 0
    until: int = 2**62
    before: int = 2**62
    """Only lines with a number below this, to read further back."""
    most: int = MAX_LISTED


def as_json(number: int, at: int, line: AuditLine) -> dict[str, Any]:
    """Return a line as lists and the audit file contain it, without empty fields. ``at``: milliseconds."""
    fields = {name: value for name, value in asdict(line).items() if value and name != "kind"}
    return {"number": number, "at": iso_of(at), "kind": line.kind.value, **fields}


def add(connection: Connection, at: int, line: AuditLine) -> int:
    """Insert a line with the time ``at`` (milliseconds), and return its number."""
    cursor = connection.execute(
        "INSERT INTO audit (at, kind, node, user, done_by, source, serial, token, reason, detail)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(at, line.kind.value, line.node, line.user, line.done_by, line.source, line.serial),
            *(line.token, line.reason, line.detail[:_MAX_DETAIL]),
        ),
    )
    return int(cursor.lastrowid or 0)


def find(connection: Connection, query: AuditQuery) -> list[dict[str, Any]]:
    """Return the newest lines that match ``query``, newest last."""
    rows = connection.execute(
        "SELECT * FROM audit WHERE at >= :since AND at < :until AND number < :before"
        " AND (:node = '' OR node = :node) AND (:user = '' OR user = :user) AND (:kind = '' OR kind = :kind)"
        " ORDER BY number DESC LIMIT :most",
        {
            "since": query.since,
            "until": query.until,
            "before": query.before,
            "node": query.node,
            "user": query.user,
            "kind": query.kind.value if query.kind else "",
            "most": min(query.most, MAX_LISTED),
        },
    ).fetchall()
    return [as_json(row["number"], row["at"], _line(row)) for row in reversed(rows)]


def _line(row: Row) -> AuditLine:
    names = ("node", "user", "done_by", "source", "serial", "token", "reason", "detail")
    return AuditLine(AuditKind(row["kind"]), **{name: row[name] for name in names})


def prune(connection: Connection, *, older_than: int, keep: int, most: int) -> int:
    """Remove lines that are too old or too many, and return their number.

    Lines from before ``older_than`` (milliseconds) and lines beyond ``keep`` are removed. One call
    removes up to a few times ``most``.
    """
    removed = _prune_refused(connection, max(1, keep // _REFUSED_SHARE), most)
    if removed == most:
        return removed  # refusals first, or a flood of refusals would push out other lines
    removed += _prune_shares(connection, max(_LEAST_SHARE, keep // _SHARE), most)
    removed += connection.execute(
        "DELETE FROM audit WHERE number IN (SELECT number FROM audit WHERE at < ? LIMIT ?)",
        (older_than, most),
    ).rowcount
    (count,) = connection.execute("SELECT count(*) FROM audit").fetchone()
    return removed + _prune_oldest(connection, min(most, count - keep))


def _prune_refused(connection: Connection, keep: int, most: int) -> int:
    return connection.execute(
        "DELETE FROM audit WHERE number IN (SELECT number FROM audit WHERE kind = 'refused' AND number <="
        " (SELECT number FROM audit WHERE kind = 'refused' ORDER BY number DESC LIMIT 1 OFFSET ?) LIMIT ?)",
        (keep, most),
    ).rowcount


def _prune_shares(connection: Connection, keep: int, most: int) -> int:
    """Remove lines beyond a share. Check only shares with new lines, because no other share has grown."""
    recent = connection.execute(
        "SELECT DISTINCT kind, node, user FROM"
        " (SELECT kind, node, user FROM audit ORDER BY number DESC LIMIT :most)"
        " WHERE node <> '' OR user <> ''",
        {"most": most},
    ).fetchall()
    same = "kind = :kind AND node = :node AND user = :user"
    return sum(
        connection.execute(
            f"DELETE FROM audit WHERE number IN (SELECT number FROM audit WHERE {same} AND number <="  # noqa: S608
            f" (SELECT number FROM audit WHERE {same} ORDER BY number DESC LIMIT 1 OFFSET :keep)"
            " LIMIT :most)",
            {"kind": row["kind"], "node": row["node"], "user": row["user"], "keep": keep, "most": most},
        ).rowcount
        for row in recent
        if AuditKind(row["kind"]) not in ACTS
    )


def _prune_oldest(connection: Connection, too_many: int) -> int:
    """Remove the oldest ``too_many`` lines. Acts of administrators are removed last."""
    if too_many <= 0:
        return 0
    acts = ", ".join(f"'{kind.value}'" for kind in ACTS)
    removed = connection.execute(
        f"DELETE FROM audit WHERE number IN (SELECT number FROM audit WHERE kind NOT IN ({acts})"  # noqa: S608
        " ORDER BY number LIMIT ?)",
        (too_many,),
    ).rowcount
    return (
        removed
        + connection.execute(
            "DELETE FROM audit WHERE number IN (SELECT number FROM audit ORDER BY number LIMIT ?)",
            (too_many - removed,),
        ).rowcount
    )
