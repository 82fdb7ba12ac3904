"""Join tokens: made, used, listed, revoked. SQL inside transactions of the caller's.

Each token lets each name in once. The same node with the same key may come again for as long as the token
lives, and that is the same use: a join that was broken off after the server had done its part is simply
done again. With another key it is a replay, whether by a thief or by a machine whose disk was wiped; the
latter gets a new token.
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
    """For one ``node``, or for all that fit ``pattern``: exactly one of them is set."""

    token: Token
    ttl_seconds: float
    node: str = ""
    pattern: str = ""
    uses: int = 1


@dataclass(frozen=True, slots=True)
class Redemption:
    """A node that shows a token. ``key_sha256`` is the fingerprint of the key in its request."""

    token_id: str
    digest: bytes
    node: str
    key_sha256: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Redeemed:
    """The token holds. ``again``: this node with this key had used it before."""

    token_id: str
    again: bool


def create(transaction: Transaction, new: NewToken, by: str) -> int:
    """Returns when it expires."""
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


def redeem(transaction: Transaction, asked: Redemption) -> Redeemed | Refused:
    """Uses a token, or says why not: then the refusal is in the audit and nothing else has changed."""
    result = _redeem(transaction, asked)
    if isinstance(result, Refused):
        line = AuditLine(
            AuditKind.REFUSED,
            node=asked.node,
            source=asked.source,
            token=asked.token_id,
            reason=result.reason.word,
            detail=result.detail,
        )
        transaction.audit(line)
    return result


def _redeem(transaction: Transaction, asked: Redemption) -> Redeemed | Refused:
    connection, token = transaction.connection, find(transaction.connection, asked.token_id)
    result = _judge(connection, transaction.now, token, asked)
    if token is not None and isinstance(result, Redeemed) and not result.again:
        connection.execute(
            "INSERT INTO token_uses (token, node, key_sha256, used_at) VALUES (?, ?, ?, ?)",
            (token["number"], asked.node, asked.key_sha256, transaction.now),
        )
    return result


def why_refused(connection: Connection, now: int, asked: Redemption) -> Refused | None:
    """Return the refusal that ``redeem`` would give now. Writes nothing."""
    result = _judge(connection, now, find(connection, asked.token_id), asked)
    return result if isinstance(result, Refused) else None


def _judge(connection: Connection, now: int, token: Row | None, asked: Redemption) -> Redeemed | Refused:
    if token is None or not hmac.compare_digest(token["digest"], asked.digest):
        return Refused(Reason.TOKEN_WRONG, "there is no such token here: it is another server's, or altered")
    refusal = _why_not(connection, now, token, asked.node)
    if refusal is not None:
        return refusal
    used = _key_of_use(connection, token, asked.node)
    if used is not None:
        if hmac.compare_digest(used, asked.key_sha256):
            return Redeemed(token["id"], again=True)
        sentence = f"token {token['id']} has let {asked.node} in before, with another key: ask for a new one"
        return Refused(Reason.TOKEN_REPLAYED, sentence)
    if _uses(connection, token) >= token["uses"]:
        sentence = f"token {token['id']} was used {token['uses']} times, as often as it may be"
        return Refused(Reason.TOKEN_USED_UP, sentence)
    return Redeemed(token["id"], again=False)


def _why_not(connection: Connection, now: int, token: Row, node: str) -> Refused | None:
    if token["revoked_at"] is not None:
        sentence = f"token {token['id']} was revoked on {iso_of(token['revoked_at'])}"
        return Refused(Reason.TOKEN_REVOKED, sentence)
    if now >= token["expires_at"]:
        sentence = (
            f"token {token['id']} held until {iso_of(token['expires_at'])};"
            f" the server's clock says {iso_of(now)}"
        )
        return Refused(Reason.TOKEN_EXPIRED, sentence)
    if not _is_for(token, node):
        sentence = f"token {token['id']} is for {token['node'] or token['pattern']}, not for {node[:300]}"
        return Refused(Reason.TOKEN_NAME_MISMATCH, sentence)
    if not may_readmit(connection, token, node):
        sentence = f"{node} was revoked; it comes back only with a token made for it alone, after that"
        return Refused(Reason.REVOKED, sentence)
    return None


def _is_for(token: Row, node: str) -> bool:
    return token["node"] == node if token["node"] else matches(token["pattern"], node)


def may_readmit(connection: Connection, token: Row, node: str) -> bool:
    """Whether the name is not revoked, or this token was made for it, and after that.

    After by number, not by the clock: a server's clock may be set back.
    """
    revocation = revocations.of_node(connection, node)
    if revocation is None:
        return True
    return token["node"] == node and bool(token["number"] > revocation["newest_token"])


def revoke(transaction: Transaction, token_id: str, by: str) -> None:
    """Raises ``Refused`` with ``NOT_FOUND``. Again is no error, and changes nothing."""
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
    """The newest tokens, newest last, without anything secret."""
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
    """Forgets tokens that ended a month ago, and their uses."""
    return connection.execute(
        "DELETE FROM tokens WHERE number IN (SELECT number FROM tokens WHERE expires_at < ? LIMIT ?)",
        (now - KEEP_ENDED, most),
    ).rowcount


def find(connection: Connection, token_id: str) -> Row | None:
    row: Row | None = connection.execute("SELECT * FROM tokens WHERE id = ?", (token_id,)).fetchone()
    return row


def has_for(connection: Connection, node: str) -> bool:
    """Whether a token was made for this very node, be it used up or expired."""
    return connection.execute("SELECT 1 FROM tokens WHERE node = ?", (node,)).fetchone() is not None


def open_for(connection: Connection, now: int, node: str) -> list[str]:
    """The tokens, by their ids, with which this very node may join now."""
    rows = connection.execute(
        "SELECT tokens.*, (SELECT count(*) FROM token_uses WHERE token = number) AS used"
        " FROM tokens WHERE node = ? ORDER BY number DESC LIMIT ?",
        (node, MAX_LISTED),
    ).fetchall()
    admits = (row for row in rows if _state(row, now) == "open" and may_readmit(connection, row, node))
    return [row["id"] for row in admits]


def one(connection: Connection, now: int, token_id: str) -> dict[str, Any]:
    """One token as lists have it. Raises ``Refused`` with ``NOT_FOUND``."""
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
    """Whether there is this very token, be it used up or expired."""
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
