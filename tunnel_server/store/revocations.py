"""Revocations: by node, by user, by serial. SQL inside transactions of the caller's.

After a revocation a node joins with a new token and a user gets a new certificate; both are let in while
everything older stays out. Until then a revocation can be taken back, which restores the state before it.
Later that is refused, because it would let in the older certificates beside the new one.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.revocation_list import Revocation, RevocationKind, RevocationList
from tunnel_server.store import descent
from tunnel_server.store.audit import AuditKind, AuditLine
from tunnel_server.store.database import Connection, Row
from tunnel_server.store.timestamps import DAY, iso_of
from tunnel_server.store.transaction import Transaction

MAX_LISTED = 1000
_MAX_WHY = 300
_ENDED_FOR = DAY
"""Descendants that ended longer ago are left out, so that a chain of short lives makes few rows. A day,
because this machine's clock may be set back."""


def revoke(transaction: Transaction, kind: RevocationKind, subject: str, by: str, why: str) -> Revocation:
    """From now on ``subject`` is shut out, and all tokens that exist are too old to let it in again.

    What was renewed from a serial is revoked with it, each by a row of its own that follows the first one.
    """
    connection = transaction.connection
    number = _insert(transaction, kind, subject, by, why)
    named = _whose(connection, subject) if kind is RevocationKind.SERIAL else {kind.value: subject}
    serial = subject if kind is RevocationKind.SERIAL else ""
    transaction.audit(AuditLine(AuditKind.REVOKED, done_by=by, serial=serial, detail=why, **named))
    along = descendants(connection, subject, transaction.now) if kind is RevocationKind.SERIAL else []
    for one in along:
        _insert(transaction, kind, one, by, why, follows=number)
        detail = f"renewed from {subject}{f': {why}' if why else ''}"
        line = AuditLine(AuditKind.REVOKED, done_by=by, serial=one, detail=detail, **_whose(connection, one))
        transaction.audit(line)
    return Revocation(number, kind, subject, transaction.now, by, why[:_MAX_WHY], tuple(along))


def descendants(connection: Connection, serial: str, now: int) -> list[str]:
    """Return the serials that were renewed from ``serial``, oldest first, without those long ended."""
    return [row["serial"] for row in descent.renewed_from(connection, serial, now - _ENDED_FOR)]


def _insert(
    transaction: Transaction,
    kind: RevocationKind,
    subject: str,
    by: str,
    why: str,
    *,
    follows: int | None = None,
) -> int:
    cursor = transaction.connection.execute(
        "INSERT INTO revocations (kind, subject, revoked_at, revoked_by, why, follows, newest_token)"
        " VALUES (?, ?, ?, ?, ?, ?,"
        " (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'tokens'))",
        (kind.value, subject, transaction.now, by, why[:_MAX_WHY], follows),
    )
    return int(cursor.lastrowid or 0)


@dataclass(frozen=True, slots=True)
class TakenBack:
    """A revocation that does not hold any more. ``still`` is an earlier one of the same subject, or None.

    ``readmitted`` are the serials that ``still`` lets in. ``along`` are the serials that were revoked with it
    and that nothing else revokes.
    """

    revocation: Revocation
    still: Revocation | None
    readmitted: frozenset[str]
    along: frozenset[str]


def take_back(transaction: Transaction, kind: RevocationKind, subject: str, by: str) -> TakenBack:
    """Removes the newest revocation of ``subject``; the audit keeps both acts.

    Raises ``Refused``: ``NOT_FOUND`` if none holds, ``REVOKED`` if a certificate was issued since.
    """
    connection = transaction.connection
    row = newest(connection, kind, subject)
    what = "the certificate" if kind is RevocationKind.SERIAL else kind.value
    if row is None:
        near = difflib.get_close_matches(subject, _revoked(connection, kind), n=1)
        hint = f"did you mean {near[0]}?" if near else "`qanat-server audit --kind revoked` lists what was"
        raise Refused(Reason.NOT_FOUND, f"{what} {subject[:300]} is not revoked; {hint}")
    since = _issued_since(connection, row)
    if since is not None:
        raise Refused(
            Reason.REVOKED,
            f"certificate {since['serial']} was issued to {since['role']} {since['name']} at"
            f" {iso_of(since['issued_at'])}, after {what} {subject} was revoked; the revocation stays:"
            " without it the older certificates would be good beside the new one",
        )
    along = _take_back_along(connection, row["number"])
    connection.execute("DELETE FROM revocations WHERE number = ?", (row["number"],))
    named = _whose(connection, subject) if kind is RevocationKind.SERIAL else {kind.value: subject}
    serial = subject if kind is RevocationKind.SERIAL else ""
    detail = f"of {iso_of(row['revoked_at'])} by {row['revoked_by']}"
    transaction.audit(AuditLine(AuditKind.UNREVOKED, done_by=by, serial=serial, detail=detail, **named))
    left = newest(connection, kind, subject)
    readmitted = frozenset(_readmitted(connection, left["number"])) if left else frozenset()
    return TakenBack(_revocation(row), _revocation(left) if left else None, readmitted, along)


def _take_back_along(connection: Connection, number: int) -> frozenset[str]:
    rows = connection.execute("SELECT subject FROM revocations WHERE follows = ?", (number,)).fetchall()
    connection.execute("DELETE FROM revocations WHERE follows = ?", (number,))
    serials = (row["subject"] for row in rows)
    return frozenset(one for one in serials if newest(connection, RevocationKind.SERIAL, one) is None)


def _revoked(connection: Connection, kind: RevocationKind) -> list[str]:
    rows = connection.execute(
        "SELECT DISTINCT subject FROM revocations WHERE kind = ? ORDER BY number DESC LIMIT ?",
        (kind.value, MAX_LISTED),
    )
    return [row["subject"] for row in rows]


def _issued_since(connection: Connection, revocation: Row) -> Row | None:
    """The newest certificate that took the place of those that the revocation shut out."""
    if revocation["kind"] == RevocationKind.SERIAL.value:
        # A user's other certificates are renewed whatever happens to this one; a node has one at a time.
        query = (
            "SELECT new.* FROM certificates AS new JOIN certificates AS old ON new.role = old.role"
            " AND new.name = old.name WHERE old.serial = :subject AND new.serial <> old.serial"
            " AND new.issued_at >= :at AND (new.role = 'node' OR new.origin <> 'renewed')"
        )
    else:
        query = "SELECT * FROM certificates AS new WHERE readmits = :number"
    row: Row | None = connection.execute(
        f"{query} ORDER BY new.rowid DESC LIMIT 1",
        {"subject": revocation["subject"], "at": revocation["revoked_at"], "number": revocation["number"]},
    ).fetchone()
    return row


def _readmitted(connection: Connection, number: int) -> list[str]:
    rows = connection.execute("SELECT serial FROM certificates WHERE readmits = ?", (number,))
    return [row["serial"] for row in rows]


def newest_as_json(connection: Connection, kind: RevocationKind, subject: str) -> dict[str, Any] | None:
    row = newest(connection, kind, subject)
    return as_json(_revocation(row)) if row else None


def of_node(connection: Connection, node: str) -> Row | None:
    """The newest revocation of this name."""
    return newest(connection, RevocationKind.NODE, node)


def newest(connection: Connection, kind: RevocationKind, subject: str) -> Row | None:
    row: Row | None = connection.execute(
        "SELECT * FROM revocations WHERE kind = ? AND subject = ? ORDER BY number DESC LIMIT 1",
        (kind.value, subject),
    ).fetchone()
    return row


def is_covered(connection: Connection, kind: RevocationKind, name: str, serial: str) -> bool:
    """Whether a certificate is shut out, as the tables say it; ``RevocationList`` says it from memory."""
    if newest(connection, RevocationKind.SERIAL, serial) is not None:
        return True
    revocation = newest(connection, kind, name)
    if revocation is None:
        return False
    row = connection.execute("SELECT readmits FROM certificates WHERE serial = ?", (serial,)).fetchone()
    return row is None or row["readmits"] != revocation["number"]


def load(connection: Connection) -> RevocationList:
    """All that is shut out, for the memory."""
    revoked = RevocationList()
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
        *(row["number"], RevocationKind(row["kind"]), row["subject"]),
        *(row["revoked_at"], row["revoked_by"], row["why"]),
    )


def _whose(connection: Connection, serial: str) -> dict[str, str]:
    row = connection.execute("SELECT role, name FROM certificates WHERE serial = ?", (serial,)).fetchone()
    return {row["role"]: row["name"]} if row and row["role"] in ("node", "user") else {}
