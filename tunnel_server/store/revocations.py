"""Revocations: by node, by user, by serial. SQL inside transactions of the caller's.

One is never taken back: a node that was shut out by mistake joins with a new token, a user gets a new
certificate, and both are let in while everything of before stays out.
"""

from __future__ import annotations

from typing import Any

from tunnel_core.identity import Role, SpiffeId
from tunnel_server.store.audit import AuditLine
from tunnel_server.store.audit import Kind as AuditKind
from tunnel_server.store.database import Connection, Row
from tunnel_server.store.moments import iso_of
from tunnel_server.store.revoked import Kind, Revocation, Revoked
from tunnel_server.store.transaction import Transaction

MAX_LISTED = 1000
_MAX_WHY = 300


def revoke(transaction: Transaction, kind: Kind, subject: str, by: str, why: str) -> Revocation:
    """From now on ``subject`` is shut out, and all tokens that exist are too old to let it in again."""
    connection = transaction.connection
    cursor = connection.execute(
        "INSERT INTO revocations (kind, subject, revoked_at, revoked_by, why, newest_token)"
        " VALUES (?, ?, ?, ?, ?, (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'tokens'))",
        (kind.value, subject, transaction.now, by, why[:_MAX_WHY]),
    )
    named = _whose(connection, subject) if kind is Kind.SERIAL else {kind.value: subject}
    serial = subject if kind is Kind.SERIAL else ""
    transaction.audit(AuditLine(AuditKind.REVOKED, done_by=by, serial=serial, detail=why, **named))
    number = int(cursor.lastrowid or 0)
    return Revocation(number, kind, subject, transaction.now, by, why[:_MAX_WHY])


def of_node(connection: Connection, node: str) -> Row | None:
    """The newest revocation of this name."""
    return newest(connection, Kind.NODE, node)


def newest(connection: Connection, kind: Kind, subject: str) -> Row | None:
    row: Row | None = connection.execute(
        "SELECT * FROM revocations WHERE kind = ? AND subject = ? ORDER BY number DESC LIMIT 1",
        (kind.value, subject),
    ).fetchone()
    return row


def is_covered(connection: Connection, kind: Kind, name: str, serial: str) -> bool:
    """Whether a certificate is shut out, as the tables say it; ``Revoked`` says it from memory."""
    if newest(connection, Kind.SERIAL, serial) is not None:
        return True
    revocation = newest(connection, kind, name)
    if revocation is None:
        return False
    row = connection.execute("SELECT readmits FROM certificates WHERE serial = ?", (serial,)).fetchone()
    return row is None or row["readmits"] != revocation["number"]


def load(connection: Connection) -> Revoked:
    """All that is shut out, for the memory."""
    revoked = Revoked()
    for row in connection.execute("SELECT * FROM revocations ORDER BY number"):
        revoked.put(_revocation(row))
    readmitted = connection.execute(
        "SELECT serial, role, name FROM certificates WHERE readmits = (SELECT max(number) FROM revocations"
        " WHERE kind = certificates.role AND subject = certificates.name)"
    )
    for row in readmitted:
        revoked.readmit(SpiffeId("any", Role(row["role"]), row["name"]), row["serial"])
    return revoked


def listed(connection: Connection, after: int = 0) -> list[dict[str, Any]]:
    """The newest revocations with a number above ``after``, newest last."""
    rows = connection.execute(
        "SELECT * FROM revocations WHERE number > ? ORDER BY number DESC LIMIT ?", (after, MAX_LISTED)
    ).fetchall()
    return [as_json(_revocation(row)) for row in reversed(rows)]


def as_json(revocation: Revocation) -> dict[str, Any]:
    return {
        "number": revocation.number,
        "kind": revocation.kind.value,
        "subject": revocation.subject,
        "at": iso_of(revocation.at),
        "by": revocation.by,
        "why": revocation.why,
    }


def _revocation(row: Row) -> Revocation:
    return Revocation(
        *(row["number"], Kind(row["kind"]), row["subject"]),
        *(row["revoked_at"], row["revoked_by"], row["why"]),
    )


def _whose(connection: Connection, serial: str) -> dict[str, str]:
    row = connection.execute("SELECT role, name FROM certificates WHERE serial = ?", (serial,)).fetchone()
    return {row["role"]: row["name"]} if row and row["role"] in ("node", "user") else {}
