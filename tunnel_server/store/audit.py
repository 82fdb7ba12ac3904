"""The audit of identity: what happened, to whom, by whom. Lines are added and, when they are old, removed;
never changed. No secret is ever in one: of a token its id, of a key its fingerprint.

Others cause most lines, so there are shares of the room. All refusals have a tenth, because strangers cause
them. The lines of one kind about one node or user have a hundredth. What administrators did is pushed out by
nothing but its age, or by later acts.
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
)
"""What administrators do; all other kinds are caused by nodes, users and strangers."""


@dataclass(frozen=True, slots=True)
class AuditLine:
    """``node`` or ``user`` is whom it concerns; ``done_by`` who did it, ``source`` from where."""

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
    """Which lines; empty fields ask for all. Times in milliseconds, ``until`` exclusive."""

    node: str = ""
    user: str = ""
    kind: AuditKind | None = None
    since: int = 0
    until: int = 2**62
    before: int = 2**62
    """Lines with a number below this, to go further back."""
    most: int = MAX_LISTED


def as_json(number: int, at: int, line: AuditLine) -> dict[str, Any]:
    """A line as lists and the file have it; empty fields are left out."""
    fields = {name: value for name, value in asdict(line).items() if value and name != "kind"}
    return {"number": number, "at": iso_of(at), "kind": line.kind.value, **fields}


def add(connection: Connection, at: int, line: AuditLine) -> int:
    """Returns the line's number."""
    cursor = connection.execute(
        "INSERT INTO audit (at, kind, node, user, done_by, source, serial, token, reason, detail)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(at, line.kind.value, line.node, line.user, line.done_by, line.source, line.serial),
            *(line.token, line.reason, line.detail[:_MAX_DETAIL]),
        ),
    )
    return int(cursor.lastrowid or 0)


def find(connection: Connection, question: AuditQuery) -> list[dict[str, Any]]:
    """The newest lines that fit, newest last."""
    rows = connection.execute(
        "SELECT * FROM audit WHERE at >= :since AND at < :until AND number < :before"
        " AND (:node = '' OR node = :node) AND (:user = '' OR user = :user) AND (:kind = '' OR kind = :kind)"
        " ORDER BY number DESC LIMIT :most",
        {
            "since": question.since,
            "until": question.until,
            "before": question.before,
            "node": question.node,
            "user": question.user,
            "kind": question.kind.value if question.kind else "",
            "most": min(question.most, MAX_LISTED),
        },
    ).fetchall()
    return [as_json(row["number"], row["at"], _line(row)) for row in reversed(rows)]


def _line(row: Row) -> AuditLine:
    names = ("node", "user", "done_by", "source", "serial", "token", "reason", "detail")
    return AuditLine(AuditKind(row["kind"]), **{name: row[name] for name in names})


def prune(connection: Connection, *, older_than: int, keep: int, most: int) -> int:
    """Remove lines that are too old or too many; return how many. Removes a few times ``most`` at once."""
    removed = _prune_refused(connection, max(1, keep // _REFUSED_SHARE), most)
    if removed == most:
        return removed  # refusals first, or a flood of them would push others out by its number
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
    """Look at those that have new lines, as the others have no more than they had."""
    recent = connection.execute(
        "SELECT DISTINCT kind, node, user FROM"
        " (SELECT kind, node, user FROM audit ORDER BY number DESC LIMIT :most)"
        " WHERE node <> '' OR user <> ''",
        {"most": most},
    ).fetchall()
    whose = "kind = :kind AND node = :node AND user = :user"
    return sum(
        connection.execute(
            f"DELETE FROM audit WHERE number IN (SELECT number FROM audit WHERE {whose} AND number <="  # noqa: S608
            f" (SELECT number FROM audit WHERE {whose} ORDER BY number DESC LIMIT 1 OFFSET :keep)"
            " LIMIT :most)",
            {"kind": row["kind"], "node": row["node"], "user": row["user"], "keep": keep, "most": most},
        ).rowcount
        for row in recent
        if AuditKind(row["kind"]) not in ACTS
    )


def _prune_oldest(connection: Connection, too_many: int) -> int:
    """Remove the oldest lines: acts of administrators only when no others are left."""
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
