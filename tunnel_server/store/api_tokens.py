"""API tokens: rows without secrets. SQL for a connection of the caller.

``tunnel_server.auth.api_tokens`` has the tokens in force in memory, and counts their uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunnel_core.reasons import Reason, Refused
from tunnel_server.auth.api_tokens import ApiToken
from tunnel_server.store import accounts
from tunnel_server.store.audit import AuditKind, AuditLine
from tunnel_server.store.database import Connection, Row
from tunnel_server.store.timestamps import DAY, iso_of
from tunnel_server.store.transaction import Transaction

KEEP_ENDED = 90 * DAY
"""Time for which an expired token is listed, so that its owner can see why it is refused."""
MAX_PER_USER = 100
"""Tokens of a user that are neither revoked nor expired, because each is in memory."""
MAX_LISTED = 10_000


@dataclass(frozen=True, slots=True)
class NewApiToken:
    """A token to create. ``name`` says what it is for."""

    id: str
    user: str
    name: str
    digest: bytes
    ttl_seconds: float


def create(transaction: Transaction, new: NewApiToken, by: str) -> ApiToken:
    """Create a token. Raises ``Refused`` for an unknown or disabled user, a name in use, or too many."""
    connection, now = transaction.connection, transaction.now
    user = accounts.require_user(connection, new.user)
    if user["disabled_at"] is not None:
        fix = f"qanat-server user enable {new.user}"
        raise Refused(Reason.BAD_REQUEST, f"user {new.user} is disabled; first: {fix}")
    valid = [row for row in _rows(connection, new.user) if _state(row, now) == "valid"]
    if any(row["name"] == new.name for row in valid):
        fix = "revoke it first, or choose another name"
        raise Refused(Reason.BAD_REQUEST, f"user {new.user} has a valid token named {new.name}; {fix}")
    if len(valid) >= MAX_PER_USER:
        raise Refused(Reason.BAD_REQUEST, f"user {new.user} has {MAX_PER_USER} valid tokens, the most")
    expires = now + int(new.ttl_seconds * 1000)
    connection.execute(
        "INSERT INTO api_tokens (id, user, name, digest, created_at, created_by, expires_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (new.id, new.user, new.name, new.digest, now, by, expires),
    )
    detail = f"{new.name}, until {iso_of(expires)}"
    _audit(transaction, AuditKind.API_TOKEN_CREATED, new.user, new.id, by, detail)
    return ApiToken(new.id, new.user, new.name, new.digest, expires)


def revoke(transaction: Transaction, token_id: str, by: str) -> str:
    """Revoke a token, and return its id. Raises ``Refused`` with ``NOT_FOUND``. Again changes nothing."""
    row = find(transaction.connection, token_id)
    if row["revoked_at"] is None:
        transaction.connection.execute(
            "UPDATE api_tokens SET revoked_at = ? WHERE id = ?", (transaction.now, token_id)
        )
        _audit(transaction, AuditKind.API_TOKEN_REVOKED, row["user"], token_id, by, row["name"])
    return token_id


def _audit(transaction: Transaction, kind: AuditKind, user: str, token: str, by: str, detail: str) -> None:
    transaction.audit(AuditLine(kind, user=user, done_by=by, token=token, detail=detail))


def find(connection: Connection, token_id: str) -> Row:
    """Return the row of a token. Raises ``Refused`` with ``NOT_FOUND``."""
    row: Row | None = connection.execute("SELECT * FROM api_tokens WHERE id = ?", (token_id,)).fetchone()
    if row is None:
        hint = "see `qanat-server api-token list`"
        raise Refused(Reason.NOT_FOUND, f"there is no API token {token_id[:80]!r}; {hint}")
    return row


def in_force(connection: Connection, now: int) -> list[ApiToken]:
    """Return the tokens that are neither revoked nor expired."""
    rows = connection.execute("SELECT * FROM api_tokens WHERE revoked_at IS NULL AND expires_at > ?", (now,))
    return [ApiToken(row["id"], row["user"], row["name"], row["digest"], row["expires_at"]) for row in rows]


def write_uses(connection: Connection, uses: Mapping[str, int]) -> None:
    """Write the last uses (milliseconds) by the id of the token."""
    connection.executemany(
        "UPDATE api_tokens SET last_used_at = max(coalesce(last_used_at, 0), ?) WHERE id = ?",
        [(at, token_id) for token_id, at in uses.items()],
    )


def listed(connection: Connection, now: int, user: str = "") -> list[dict[str, Any]]:
    """Return tokens as JSON, newest last, of one user or of all, without their digests."""
    return [as_json(row, now) for row in _rows(connection, user)]


def as_json(row: Row, now: int) -> dict[str, Any]:
    """Return a row as lists contain it."""
    return {
        "id": row["id"],
        "user": row["user"],
        "name": row["name"],
        "state": _state(row, now),
        "created": iso_of(row["created_at"]),
        "created_by": row["created_by"],
        "expires": iso_of(row["expires_at"]),
        "last_used": None if row["last_used_at"] is None else iso_of(row["last_used_at"]),
    }


def _rows(connection: Connection, user: str) -> list[Row]:
    rows = connection.execute(
        "SELECT * FROM api_tokens WHERE :user = '' OR user = :user ORDER BY number DESC LIMIT :most",
        {"user": user, "most": MAX_LISTED},
    )
    return list(reversed(rows.fetchall()))


def _state(row: Row, now: int) -> str:
    if row["revoked_at"] is not None:
        return "revoked"
    return "expired" if now >= row["expires_at"] else "valid"


def prune(connection: Connection, now: int, most: int) -> int:
    """Remove up to ``most`` tokens that expired 90 days ago, and return their number."""
    return connection.execute(
        "DELETE FROM api_tokens WHERE number IN (SELECT number FROM api_tokens WHERE expires_at < ? LIMIT ?)",
        (now - KEEP_ENDED, most),
    ).rowcount
