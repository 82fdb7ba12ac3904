"""Certificates that this server issued. SQL inside transactions of the caller.

A certificate is recorded before it is handed out, so no certificate of this server is unrecorded.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from certs.rotation import CertificateInUse
from certs.validity import ValidityPeriod
from certs.x509 import CertificateFacts
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.revocation_list import RevocationKind, kind_of, refusal
from tunnel_server.store import accounts, descent, known_nodes, revocations, tokens
from tunnel_server.store.audit import AuditKind, AuditLine
from tunnel_server.store.database import Connection, Row
from tunnel_server.store.timestamps import DAY, from_ms, iso_of, to_ms
from tunnel_server.store.transaction import Transaction

KEEP_ENDED = 90 * DAY
MAX_LISTED = 1000
MAX_ENDING = 100
LIST_ENDED = 14 * DAY
"""Time for which an expired node certificate is listed. A node that is away longer counts as abandoned."""


class Origin(enum.Enum):
    """The way in which a certificate came to be issued."""

    ENROLLED = "enrolled"
    RENEWED = "renewed"
    BY_HAND = "by_hand"


_AUDITED = {
    Origin.ENROLLED: AuditKind.ENROLLED,
    Origin.RENEWED: AuditKind.RENEWED,
    Origin.BY_HAND: AuditKind.ISSUED,
}


@dataclass(frozen=True, slots=True)
class NewCertificate:
    """A certificate to record. ``token_id`` is the token of an enrolment, ``previous`` the renewed serial.

    ``renewal_seconds`` bounds the validity of its renewals; None stands for the configured validity.
    """

    facts: CertificateFacts
    root_pin: bytes
    origin: Origin
    token_id: str = ""
    previous: str = ""
    by: str = ""
    source: str = ""
    renewal_seconds: float | None = None


def by_hand(facts: CertificateFacts, root_pin: bytes, by: str, *, renewable: bool = False) -> NewCertificate:
    """Return a certificate that an administrator issued. Its renewals are valid for its own period at most.

    The configuration bounds them instead if the certificate is ``renewable``.
    """
    limit = None if renewable else ValidityPeriod(facts.serial, facts.begins, facts.ends).seconds()
    return NewCertificate(facts, root_pin, Origin.BY_HAND, by=by, renewal_seconds=limit)


class NodeCertificate(NamedTuple):
    """The serial and the expiry of a node's certificate."""

    serial: str
    ends: datetime


@dataclass(frozen=True, slots=True)
class Recorded:
    """Result of ``record``. ``readmits``: the name was revoked before, so this serial must be readmitted."""

    readmits: bool


def record(transaction: Transaction, new: NewCertificate) -> Recorded | Refused:
    """Record a certificate, or return the refusal if its holder or its token was revoked in the meantime."""
    connection, facts = transaction.connection, new.facts
    refused = _why_refused(connection, new)
    if refused is not None:
        transaction.audit(_line(new, AuditKind.REFUSED, refused))
        return refused
    kind = kind_of(facts.identity.role)
    revocation = revocations.newest(connection, kind, facts.identity.name) if kind else None
    connection.execute(
        "INSERT INTO certificates (serial, role, name, key_sha256, root_pin, begins_at, ends_at, issued_at,"
        " origin, token, readmits, previous, renewal_seconds)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(facts.serial, facts.identity.role.value, facts.identity.name, facts.key_sha256),
            *(new.root_pin.hex(), to_ms(facts.begins), to_ms(facts.ends), transaction.now),
            *(new.origin.value, new.token_id, revocation["number"] if revocation else None),
            *(new.previous, new.renewal_seconds),
        ),
    )
    if facts.identity.role is Role.NODE:
        known_nodes.add(connection, facts.identity.name, transaction.now)
    if facts.identity.role is Role.USER:
        accounts.note_certificate(transaction, facts.identity.name, new.by)
    transaction.audit(_line(new, _AUDITED[new.origin]))
    return Recorded(readmits=revocation is not None)


def _why_refused(connection: Connection, new: NewCertificate) -> Refused | None:
    """Check again, because the token or the certificate may have been revoked since its first check."""
    identity = new.facts.identity
    if new.origin is Origin.ENROLLED:
        token = tokens.find(connection, new.token_id)
        if token is None or token["revoked_at"] is not None:
            return Refused(Reason.TOKEN_REVOKED, f"token {new.token_id} was revoked")
        if not tokens.may_readmit(connection, token, identity.name):
            return Refused(Reason.REVOKED, f"{identity.name} was revoked while it joined")
    kind = kind_of(identity.role)
    if new.origin is not Origin.RENEWED or kind is None:
        return None
    is_revoked = revocations.is_covered(connection, kind, identity.name, new.previous)
    return refusal(identity, new.previous) if is_revoked else None


def _line(new: NewCertificate, kind: AuditKind, refused: Refused | None = None) -> AuditLine:
    identity = new.facts.identity
    named = {identity.role.value: identity.name} if identity.role is not Role.SERVER else {}
    return AuditLine(
        kind,
        done_by=new.by,
        source=new.source,
        serial=new.facts.serial if refused is None else new.previous,
        token=new.token_id,
        reason=refused.reason.word if refused else "",
        detail=refused.detail if refused else f"until {iso_of(to_ms(new.facts.ends))}",
        **named,
    )


def renewal_seconds(connection: Connection, serial: str, unknown: float) -> float | None:
    """Return the longest validity of a renewal in seconds; None stands for the configured validity.

    The result is ``unknown`` for a certificate that is not recorded here.
    """
    row = connection.execute(
        "SELECT renewal_seconds FROM certificates WHERE serial = ?", (serial,)
    ).fetchone()
    if row is None:
        return unknown
    limit: float | None = row["renewal_seconds"]
    return limit


def find(connection: Connection, serial: str) -> dict[str, Any] | None:
    """Return the certificate with this serial as JSON, or None."""
    row = connection.execute("SELECT * FROM certificates WHERE serial = ?", (serial,)).fetchone()
    return as_json(connection, row) if row else None


def listed(
    connection: Connection, now: int, *, role: str = "", name: str = "", ended: bool = False
) -> list[dict[str, Any]]:
    """Return the newest certificates as JSON, newest last. ``ended`` includes those that have expired."""
    rows = connection.execute(
        "SELECT * FROM certificates WHERE (:role = '' OR role = :role) AND (:name = '' OR name = :name)"
        " AND (:ended OR ends_at > :now) ORDER BY issued_at DESC, rowid DESC LIMIT :most",
        {"role": role, "name": name, "ended": ended, "now": now, "most": MAX_LISTED},
    ).fetchall()
    return [as_json(connection, row) for row in reversed(rows)]


def as_json(connection: Connection, row: Row) -> dict[str, Any]:
    """Return a row of the table as lists contain it."""
    return {
        "serial": row["serial"],
        "role": row["role"],
        "name": row["name"],
        "issued": iso_of(row["issued_at"]),
        "ends": iso_of(row["ends_at"]),
        "origin": row["origin"],
        "token": row["token"] or None,
        "renewed_from": row["previous"] or None,
        "root_pin": row["root_pin"],
        "key_sha256": row["key_sha256"],
        "revoked": _is_revoked(connection, row),
    }


def _is_revoked(connection: Connection, row: Row) -> bool:
    kind = kind_of(Role(row["role"]))
    if kind is None:
        return revocations.newest(connection, RevocationKind.SERIAL, row["serial"]) is not None
    return revocations.is_covered(connection, kind, row["name"], row["serial"])


def in_use(connection: Connection, now: int) -> list[CertificateInUse]:
    """Return the certificates that may be in use: not expired, not revoked, and of each node only the newest.

    A node has one agent, so the newest certificate of its name replaces the older ones. A user may have
    several machines.
    """
    rows = connection.execute(
        "SELECT * FROM certificates AS one WHERE ends_at > ? AND (role <> 'node' OR NOT EXISTS (SELECT 1 FROM"
        " certificates AS other WHERE other.role = 'node' AND other.name = one.name"
        " AND other.rowid > one.rowid)) ORDER BY rowid",
        (now,),
    ).fetchall()
    return [_in_use(row) for row in rows if not _is_revoked(connection, row)]


def newest_of_node(connection: Connection, name: str) -> NodeCertificate | None:
    """Return the newest certificate of a node, even if it is revoked or has expired; None without one."""
    row = connection.execute(
        "SELECT * FROM certificates WHERE role = 'node' AND name = ? ORDER BY rowid DESC LIMIT 1", (name,)
    ).fetchone()
    if row is None:
        return None
    return NodeCertificate(row["serial"], from_ms(row["ends_at"]))


def ending(connection: Connection, now: int) -> list[dict[str, Any]]:
    """Return the certificates of nodes whose renewal is overdue, as JSON.

    These are certificates in the last fifth of their validity, or expired within two weeks. Only the newest
    one of a node counts. Agents renew after two thirds of the validity. Revoked certificates are left out.
    """
    rows = connection.execute(
        "SELECT * FROM certificates AS one WHERE role = 'node' AND ends_at > :horizon"
        " AND (ends_at - :now) * 5 < ends_at - issued_at AND NOT EXISTS (SELECT 1 FROM certificates AS other"
        " WHERE other.role = 'node' AND other.name = one.name AND other.rowid > one.rowid)"
        " ORDER BY ends_at LIMIT :most",
        {"horizon": now - LIST_ENDED, "now": now, "most": MAX_ENDING},
    ).fetchall()
    return [
        {"node": row["name"], "serial": row["serial"], "ends": iso_of(row["ends_at"])}
        for row in rows
        if not _is_revoked(connection, row)
    ]


def _in_use(row: Row) -> CertificateInUse:
    return CertificateInUse(
        Role(row["role"]), row["name"], row["serial"], row["root_pin"], from_ms(row["issued_at"])
    )


def prune(connection: Connection, now: int, most: int) -> int:
    """Remove up to ``most`` certificates that expired 90 days ago, and return their number."""
    rows = connection.execute(
        "SELECT serial FROM certificates WHERE ends_at < ? LIMIT ?", (now - KEEP_ENDED, most)
    ).fetchall()
    for row in rows:
        descent.remove(connection, row["serial"])
    return len(rows)
