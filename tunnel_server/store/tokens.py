"""Join tokens: create, redeem, list and revoke them. SQL inside transactions of the caller.

A token admits each node name once. The same node with the same key may redeem the token again until it
expires. That counts as the same use, so that an agent can repeat a join that failed after the server's part.
With another key the use is a replay, by a thief or by a machine whose disk was wiped. Such a machine needs a
new token.
"""

from __future__ import annotations

import difflib
import hmac
from dataclasses import dataclass
from typing import Any

from certs.token import Token
from tunnel_core.node_patterns import matches
from tunnel_core.reasons import Reason, Refused
from tunnel_server.store import revocations
from tunnel_server.store.audit import AuditKind, AuditLine
from tunnel_server.store.database import Connection, Row
from tunnel_server.store.timestamps import DAY, iso_of
from tunnel_server.store.transaction import Transaction

KEEP_ENDED = 30 * DAY
MAX_LISTED = 1000


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token to create. Exactly one of ``node`` and ``pattern`` is set: one node, or all that match."""

    token: Token
    ttl_seconds: float
    node: str = ""
    pattern: str = ""
    uses: int = 1


@dataclass(frozen=True, slots=True)
class Redemption:
    """The use of a token by a node. ``key_sha256`` is the fingerprint of the key in the node's request."""

    token_id: str
    digest: bytes
    node: str
    key_sha256: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Redeemed:
    """A token that was accepted. ``again``: the same node redeemed it before with the same key."""

    token_id: str
    again: bool


def create(transaction: Transaction, new: NewToken, by: str) -> int:
    """Create a token, and return its expiry in milliseconds."""
    expires = transaction.now + int(new.ttl_seconds * 1000)
    transaction.connection.execute(
        "INSERT INTO tokens (id, digest, root_pin, node, pattern, uses, created_at, created_by, expires_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(new.token.id, new.token.digest, new.token.pin.hex(), new.node or None, new.pattern or None),
            *(new.uses, transaction.now, by, expires),
        ),
    )
    uses = "1 use" if new.uses == 1 else f"{new.uses} uses"
    detail = f"for {new.node or new.pattern}, {uses}, until {iso_of(expires)}"
    line = AuditLine(AuditKind.TOKEN_CREATED, node=new.node, done_by=by, token=new.token.id, detail=detail)
    transaction.audit(line)
    return expires


def redeem(transaction: Transaction, redemption: Redemption) -> Redeemed | Refused:
    """Use a token, or return the refusal. A refusal is audited and changes nothing else."""
    result = _redeem(transaction, redemption)
    if isinstance(result, Refused):
        line = AuditLine(
            AuditKind.REFUSED,
            node=redemption.node,
            source=redemption.source,
            token=redemption.token_id,
            reason=result.reason.word,
            detail=result.detail,
        )
        transaction.audit(line)
    return result


def _redeem(transaction: Transaction, redemption: Redemption) -> Redeemed | Refused:
    connection, token = transaction.connection, find(transaction.connection, redemption.token_id)
    result = _check(connection, transaction.now, token, redemption)
    if token is not None and isinstance(result, Redeemed) and not result.again:
        connection.execute(
            "INSERT INTO token_uses (token, node, key_sha256, used_at) VALUES (?, ?, ?, ?)",
            (token["number"], redemption.node, redemption.key_sha256, transaction.now),
        )
    return result


def why_refused(connection: Connection, now: int, redemption: Redemption) -> Refused | None:
    """Return the refusal that ``redeem`` would return now, or None. Writes nothing."""
    result = _check(connection, now, find(connection, redemption.token_id), redemption)
    return result if isinstance(result, Refused) else None


def _check(connection: Connection, now: int, token: Row | None, redemption: Redemption) -> Redeemed | Refused:
    if token is None or not hmac.compare_digest(token["digest"], redemption.digest):
        return Refused(Reason.TOKEN_WRONG, "there is no such token here: it is another server's, or altered")
    refusal = _why_refused(connection, now, token, redemption.node)
    if refusal is not None:
        return refusal
    used_key = _key_of_use(connection, token, redemption.node)
    if used_key is not None:
        if hmac.compare_digest(used_key, redemption.key_sha256):
            return Redeemed(token["id"], again=True)
        sentence = (
            f"{redemption.node} has used token {token['id']} before, with another key; ask for a new token"
        )
        return Refused(Reason.TOKEN_REPLAYED, sentence)
    if _uses(connection, token) >= token["uses"]:
        sentence = f"token {token['id']} was used {token['uses']} times, which is its limit"
        return Refused(Reason.TOKEN_USED_UP, sentence)
    return Redeemed(token["id"], again=False)


def _why_refused(connection: Connection, now: int, token: Row, node: str) -> Refused | None:
    if token["revoked_at"] is not None:
        sentence = f"token {token['id']} was revoked on {iso_of(token['revoked_at'])}"
        return Refused(Reason.TOKEN_REVOKED, sentence)
    if now >= token["expires_at"]:
        sentence = (
            f"token {token['id']} expired at {iso_of(token['expires_at'])};"
            f" the server's clock says {iso_of(now)}"
        )
        return Refused(Reason.TOKEN_EXPIRED, sentence)
    if not _is_for(token, node):
        sentence = f"token {token['id']} is for {token['node'] or token['pattern']}, not for {node[:300]}"
        return Refused(Reason.TOKEN_NAME_MISMATCH, sentence)
    if not may_readmit(connection, token, node):
        sentence = f"{node} was revoked; it needs a token for its name alone, created after the revocation"
        return Refused(Reason.REVOKED, sentence)
    return None


def _is_for(token: Row, node: str) -> bool:
    return token["node"] == node if token["node"] else matches(token["pattern"], node)


def may_readmit(connection: Connection, token: Row, node: str) -> bool:
    """Whether the node is not revoked, or this token was created for it alone after its revocation.

    The order is that of the numbers, because a server's clock may be set back.
    """
    revocation = revocations.of_node(connection, node)
    if revocation is None:
        return True
    return token["node"] == node and bool(token["number"] > revocation["newest_token"])


def revoke(transaction: Transaction, token_id: str, by: str) -> None:
    """Revoke a token. Raises ``Refused`` with ``NOT_FOUND``. Revoking it again changes nothing."""
    token = find(transaction.connection, token_id)
    if token is None:
        raise _unknown(transaction.connection, token_id)
    if token["revoked_at"] is None:
        transaction.connection.execute(
            "UPDATE tokens SET revoked_at = ? WHERE number = ?", (transaction.now, token["number"])
        )
        line = AuditLine(AuditKind.TOKEN_REVOKED, node=token["node"] or "", done_by=by, token=token_id)
        transaction.audit(line)


def listed(connection: Connection, now: int) -> list[dict[str, Any]]:
    """Return the newest tokens as JSON, newest last, without their secrets."""
    rows = connection.execute(
        "SELECT tokens.*, (SELECT count(*) FROM token_uses WHERE token = number) AS used"
        " FROM tokens ORDER BY number DESC LIMIT ?",
        (MAX_LISTED,),
    ).fetchall()
    return [_as_json(connection, row, now) for row in reversed(rows)]


def _as_json(connection: Connection, row: Row, now: int) -> dict[str, Any]:
    state = _state(row, now)
    is_shut_out = bool(row["node"]) and not may_readmit(connection, row, row["node"])
    return {
        "id": row["id"],
        "state": "revoked" if state == "open" and is_shut_out else state,
        "revoked_with_node": state == "open" and is_shut_out,
        "node": row["node"],
        "match": row["pattern"],
        "uses": row["uses"],
        "used": row["used"],
        "created": iso_of(row["created_at"]),
        "created_by": row["created_by"],
        "expires": iso_of(row["expires_at"]),
        "root_pin": row["root_pin"],
    }


def _state(row: Row, now: int) -> str:
    if row["revoked_at"] is not None:
        return "revoked"
    if now >= row["expires_at"]:
        return "expired"
    return "used_up" if row["used"] >= row["uses"] else "open"


def prune(connection: Connection, now: int, most: int) -> int:
    """Remove up to ``most`` tokens that expired 30 days ago, with their uses, and return their number."""
    return connection.execute(
        "DELETE FROM tokens WHERE number IN (SELECT number FROM tokens WHERE expires_at < ? LIMIT ?)",
        (now - KEEP_ENDED, most),
    ).rowcount


def find(connection: Connection, token_id: str) -> Row | None:
    """Return the row of a token, or None."""
    row: Row | None = connection.execute("SELECT * FROM tokens WHERE id = ?", (token_id,)).fetchone()
    return row


def has_for(connection: Connection, node: str) -> bool:
    """Whether a token was created for exactly this node, even if it is used up or expired."""
    return connection.execute("SELECT 1 FROM tokens WHERE node = ?", (node,)).fetchone() is not None


def open_for(connection: Connection, now: int, node: str) -> list[str]:
    """Return the ids of the tokens for exactly this node with which it can join now."""
    rows = connection.execute(
        "SELECT tokens.*, (SELECT count(*) FROM token_uses WHERE token = number) AS used"
        " FROM tokens WHERE node = ? ORDER BY number DESC LIMIT ?",
        (node, MAX_LISTED),
    ).fetchall()
    admits = (row for row in rows if _state(row, now) == "open" and may_readmit(connection, row, node))
    return [row["id"] for row in admits]


def find_as_json(connection: Connection, now: int, token_id: str) -> dict[str, Any]:
    """Return a token as lists contain it. Raises ``Refused`` with ``NOT_FOUND``."""
    row = connection.execute(
        "SELECT tokens.*, (SELECT count(*) FROM token_uses WHERE token = number) AS used"
        " FROM tokens WHERE id = ?",
        (token_id,),
    ).fetchone()
    if row is None:
        raise _unknown(connection, token_id)
    return _as_json(connection, row, now)


def _unknown(connection: Connection, token_id: str) -> Refused:
    known = [row["id"] for row in connection.execute("SELECT id FROM tokens ORDER BY number DESC LIMIT 1000")]
    near = difflib.get_close_matches(token_id[:80], known, n=1)
    hint = f"did you mean {near[0]}?" if near else "see `qanat-server token list`"
    return Refused(Reason.NOT_FOUND, f"there is no token {token_id[:80]!r}; {hint}")


def is_known(connection: Connection, token_id: str, digest: bytes) -> bool:
    """Whether the store has exactly this token, even if it is used up or expired."""
    token = find(connection, token_id)
    return token is not None and hmac.compare_digest(token["digest"], digest)


def _key_of_use(connection: Connection, token: Row, node: str) -> str | None:
    row = connection.execute(
        "SELECT key_sha256 FROM token_uses WHERE token = ? AND node = ?", (token["number"], node)
    ).fetchone()
    return row["key_sha256"] if row else None


def _uses(connection: Connection, token: Row) -> int:
    query = "SELECT count(*) FROM token_uses WHERE token = ?"
    return int(connection.execute(query, (token["number"],)).fetchone()[0])
