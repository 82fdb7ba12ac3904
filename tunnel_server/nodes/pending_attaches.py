"""Attaches in progress, bounded for each identity. No I/O.

A call holds a connection and a place before its agent sends a hello. Each identity therefore has few attaches
in progress; a further one displaces the oldest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from certs.x509 import IdentityError, VerifiedCertificate
from tunnel_core.reasons import Refused

if TYPE_CHECKING:
    from tunnel_core.session.attachment import Attachment
    from tunnel_core.session.session import Session
    from tunnel_server.nodes.sessions import HeldSession


@dataclass(slots=True)
class PendingAttach:
    """An attach in progress. ``held`` is the session to resume, None for a new session."""

    identity: str
    """The key under which attaches are counted; all attaches of one node have the same key."""
    certificate: VerifiedCertificate | None
    """The certificate of the carrier; None if it is no readable node certificate of this trust domain."""
    held: HeldSession | None = None
    session: Session | None = None
    """The session that this attach began."""
    refused: Refused | None = None
    """The reason why the server offered no session."""

    @property
    def node(self) -> str:
        """The name of the node; empty without a valid certificate."""
        return self.certificate.identity.name if self.certificate is not None else ""


def identity_of(certificate: VerifiedCertificate | None, refused: Refused | None, leaf_pem: bytes) -> str:
    """Return the key of an attach: the certificate's identity, or the digest of a certificate without one.

    Refused attaches have separate keys, so a revoked certificate displaces no attach of a valid certificate.
    """
    if certificate is not None and refused is None:
        return str(certificate.identity)
    if isinstance(refused, IdentityError) and refused.identity is not None:
        return f"refused {refused.identity}"
    return hashlib.sha256(leaf_pem).hexdigest()


class PendingAttaches:
    """The attaches in progress, oldest first. ``most`` bounds their number for each identity."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: dict[Attachment, PendingAttach] = {}
        self._by_identity: dict[str, dict[Attachment, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, attachment: Attachment, pending: PendingAttach) -> Attachment | None:
        """Add an attach. If its identity has too many, remove the oldest and return it; else return None."""
        own = self._by_identity.setdefault(pending.identity, {})
        oldest = next(iter(own)) if len(own) >= self._most else None
        self._all[attachment] = pending
        own[attachment] = None
        if oldest is not None:
            self.discard(oldest)
        return oldest

    def is_newest(self, attachment: Attachment) -> bool:
        """Whether this attach is in progress, and no later one of its identity is."""
        pending = self._all.get(attachment)
        return pending is not None and next(reversed(self._by_identity[pending.identity])) is attachment

    def find(self, attachment: Attachment) -> PendingAttach:
        """Return the attach of this attachment. Raises ``KeyError`` if it was removed."""
        return self._all[attachment]

    def discard(self, attachment: Attachment) -> None:
        """Remove an attach. Idempotent."""
        pending = self._all.pop(attachment, None)
        if pending is None:
            return
        own = self._by_identity[pending.identity]
        del own[attachment]
        if not own:
            del self._by_identity[pending.identity]
