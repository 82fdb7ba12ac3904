"""API tokens of scripts: the text, its digest, and the tokens in force, in memory. No I/O.

A token is 256 random bits. The server keeps only the SHA-256 of its text, so a stolen store admits nobody. A
lookup by digest needs no comparison in constant time, because no digest can be approached byte by byte.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PREFIX = "qanat_"
"""Begin of each token, by which scanners of published files find it."""
SECRET_BYTES = 32
_FORM = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")


def format_api_token(secret: bytes) -> str:
    """Return the text of a token with these 32 random bytes."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a token has {SECRET_BYTES} bytes")
    return PREFIX + base64.urlsafe_b64encode(secret).decode().rstrip("=")


def digest_of(text: str) -> bytes | None:
    """Return the digest by which the store knows the token ``text``; None if it is no token."""
    return hashlib.sha256(text.encode()).digest() if _FORM.fullmatch(text) else None


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token that was not revoked. ``expires_at`` is in milliseconds since 1970."""

    id: str
    user: str
    name: str
    digest: bytes
    expires_at: int


class ApiTokens:
    """The tokens that were not revoked. For the trio thread."""

    def __init__(self, tokens: Iterable[ApiToken] = ()) -> None:
        self._by_digest = {token.digest: token for token in tokens}
        self._subscribers: list[Callable[[ApiToken], None]] = []
        self._uses: dict[str, int] = {}

    def subscribe(self, on_revoked: Callable[[ApiToken], None]) -> None:
        """Call ``on_revoked`` with each token that is revoked from now on. It must not block or raise."""
        self._subscribers.append(on_revoked)

    def find(self, text: str, now: int) -> ApiToken | None:
        """Return the token ``text`` if it is valid at ``now`` (milliseconds), and note its use; else None."""
        digest = digest_of(text)
        token = self._by_digest.get(digest) if digest is not None else None
        if token is None or now >= token.expires_at:
            return None
        self._uses[token.id] = now
        return token

    def put(self, token: ApiToken) -> None:
        """Add a token."""
        self._by_digest[token.digest] = token

    def revoke(self, token_id: str) -> None:
        """Remove a token, and call the subscribers. An unknown token changes nothing."""
        for token in [token for token in self._by_digest.values() if token.id == token_id]:
            del self._by_digest[token.digest]
            for on_revoked in self._subscribers:
                on_revoked(token)

    def take_uses(self) -> dict[str, int]:
        """Return the last uses since the last call, in milliseconds by the id of the token."""
        uses, self._uses = self._uses, {}
        return uses
