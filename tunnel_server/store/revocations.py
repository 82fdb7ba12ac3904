"""Revocations of nodes, users and serials. SQL inside transactions of the caller.

After a revocation a node joins with a new token, and a user gets a new certificate. The new certificate is
valid while all older ones stay revoked. Until then an administrator can take the revocation back, which
restores the state before. Later the server refuses that, because the older certificates would be valid beside
the new one.
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
"""Descendants that expired longer ago are left out, so that a chain of short-lived certificates makes few
rows. The margin is a day, because this machine's clock may be set back."""


def revoke(transaction: Transaction, kind: RevocationKind, subject: str, by: str, why: str) -> Revocation:
    """Revoke ``subject``. No token that exists now can readmit it.

    The certificates that were renewed from a serial are revoked with it. Each has a row that follows the
    first.
    """
    connection = transaction.connection
    number = _insert(transaction, kind, subject, by, why)
    named = _holder_of(connection, subject) if kind is RevocationKind.SERIAL else {kind.value: subject}
    serial = subject if kind is RevocationKind.SERIAL else ""
    transaction.audit(AuditLine(AuditKind.REVOKED, done_by=by, serial=serial, detail=why, **named))
    descendants = _descendants(connection, subject, transaction.now) if kind is RevocationKind.SERIAL else []
    for renewed in descendants:
        _insert(transaction, kind, renewed, by, why, follows=number)
        detail = f"renewed from {subject}{f': {why}' if why else ''}"
        holder = _holder_of(connection, renewed)
        transaction.audit(AuditLine(AuditKind.REVOKED, done_by=by, serial=renewed, detail=detail, **holder))
    return Revocation(number, kind, subject, transaction.now, by, why[:_MAX_WHY], tuple(descendants))


def _descendants(connection: Connection, serial: str, now: int) -> list[str]:
    """Return the serials renewed from ``serial``, oldest first, without those that expired a day ago."""
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
    """A revocation that was taken back. ``still`` is an earlier revocation of the same subject, or None.

    ``readmitted`` are the serials that ``still`` does not revoke. ``descendants`` are the serials that only
    the revocation that was taken back had revoked along with its subject.
    """

    revocation: Revocation
    still: Revocation | None
    readmitted: frozenset[str]
    descendants: frozenset[str]


def take_back(transaction: Transaction, kind: RevocationKind, subject: str, by: str) -> TakenBack:
    """Remove the newest revocation of ``subject``; the audit keeps both acts.

    Raises ``Refused`` with ``NOT_FOUND`` if ``subject`` is not revoked, and with ``REVOKED`` if a certificate
    was issued since.
    """
    connection = transaction.connection
    row = newest(connection, kind, subject)
    noun = "the certificate" if kind is RevocationKind.SERIAL else kind.value
    if row is None:
        near = difflib.get_close_matches(subject, _revoked(connection, kind), n=1)
        hint = f"did you mean {near[0]}?" if near else "`qanat-server audit --kind revoked` lists what was"
        raise Refused(Reason.NOT_FOUND, f"{noun} {subject[:300]} is not revoked; {hint}")
    since = _issued_since(connection, row)
    if since is not None:
        raise Refused(
            Reason.REVOKED,
            f"certificate {since['serial']} was issued to {since['role']} {since['name']} at"
            f" {iso_of(since['issued_at'])}, after {noun} {subject} was revoked; the revocation stays:"
            " without it the older certificates would be valid beside the new one",
        )
    descendants = _take_back_descendants(connection, row["number"])
    connection.execute("DELETE FROM revocations WHERE number = ?", (row["number"],))
    named = _holder_of(connection, subject) if kind is RevocationKind.SERIAL else {kind.value: subject}
    serial = subject if kind is RevocationKind.SERIAL else ""
    detail = f"of {iso_of(row['revoked_at'])} by {row['revoked_by']}"
    transaction.audit(AuditLine(AuditKind.UNREVOKED, done_by=by, serial=serial, detail=detail, **named))
    still = newest(connection, kind, subject)
    readmitted = frozenset(_readmitted(connection, still["number"])) if still else frozenset()
    return TakenBack(_revocation(row), _revocation(still) if still else None, readmitted, descendants)


def _take_back_descendants(connection: Connection, number: int) -> frozenset[str]:
    rows = connection.execute("SELECT subject FROM revocations WHERE follows = ?", (number,)).fetchall()
    connection.execute("DELETE FROM revocations WHERE follows = ?", (number,))
    serials = (row["subject"] for row in rows)
    return frozenset(
        serial for serial in serials if newest(connection, RevocationKind.SERIAL, serial) is None
    )


def _revoked(connection: Connection, kind: RevocationKind) -> list[str]:
    rows = connection.execute(
        "SELECT DISTINCT subject FROM revocations WHERE kind = ? ORDER BY number DESC LIMIT ?",
        (kind.value, MAX_LISTED),
    )
    return [row["subject"] for row in rows]


def _issued_since(connection: Connection, revocation: Row) -> Row | None:
    """Return the newest certificate that replaces the revoked ones, or None."""
    if revocation["kind"] == RevocationKind.SERIAL.value:
        # A user has several certificates, and renewals of the others do not count. A node has one at a time.
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
    """Return the newest revocation of ``subject`` as JSON, or None."""
    row = newest(connection, kind, subject)
    return as_json(_revocation(row)) if row else None


def of_node(connection: Connection, node: str) -> Row | None:
    """Return the newest revocation of this node, or None."""
    return newest(connection, RevocationKind.NODE, node)


def newest(connection: Connection, kind: RevocationKind, subject: str) -> Row | None:
    """Return the newest revocation of ``subject``, or None."""
    row: Row | None = connection.execute(
        "SELECT * FROM revocations WHERE kind = ? AND subject = ? ORDER BY number DESC LIMIT 1",
        (kind.value, subject),
    ).fetchone()
    return row


def is_covered(connection: Connection, kind: RevocationKind, name: str, serial: str) -> bool:
    """Whether the tables revoke a certificate. ``RevocationList`` answers the same from memory."""
    if newest(connection, RevocationKind.SERIAL, serial) is not None:
        return True
    revocation = newest(connection, kind, name)
    if revocation is None:
        return False
    row = connection.execute("SELECT readmits FROM certificates WHERE serial = ?", (serial,)).fetchone()
    return row is None or row["readmits"] != revocation["number"]


def load(connection: Connection) -> RevocationList:
    """Return the list of all revocations, for checks in memory."""
    revocation_list = RevocationList()
    for row in connection.execute("SELECT * FROM revocations ORDER BY number"):
        revocation_list.put(_revocation(row))
    readmitted = connection.execute(
        "SELECT serial, role, name FROM certificates WHERE readmits = (SELECT max(number) FROM revocations"
        " WHERE kind = certificates.role AND subject = certificates.name)"
    )
    for row in readmitted:
        revocation_list.readmit(SpiffeId("any", Role(row["role"]), row["name"]), row["serial"])
    return revocation_list


def listed(connection: Connection, after: int = 0) -> list[dict[str, Any]]:
    """Return the newest revocations with a number above ``after`` as JSON, newest last."""
    rows = connection.execute(
        "SELECT * FROM revocations WHERE number > ? ORDER BY number DESC LIMIT ?", (after, MAX_LISTED)
    ).fetchall()
    return [as_json(_revocation(row)) for row in reversed(rows)]


def as_json(revocation: Revocation) -> dict[str, Any]:
    """Return a revocation as lists contain it."""
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


def _holder_of(connection: Connection, serial: str) -> dict[str, str]:
    row = connection.execute("SELECT role, name FROM certificates WHERE serial = ?", (serial,)).fetchone()
    return {row["role"]: row["name"]} if row and row["role"] in ("node", "user") else {}
