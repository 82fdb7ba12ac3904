"""Attaches under way, by the identity that its carrier proved: a few of each, the newest stay. No I/O.

A call holds a connection and a place before its agent has said a word, so each certificate has few.
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
    """An attach under way. ``held`` is the session it asks to go on with, None for a new one."""

    identity: str
    """The key under which attaches are counted; all attaches of one node have the same."""
    proven: (
        VerifiedCertificate | None
    )  # what its carrier has proven; None if that is nothing that may be used
    held: HeldSession | None = None
    link: Session | None = None  # the session that it began
    refused: Refused | None = None  # why nothing was offered

    @property
    def node(self) -> str:
        return self.proven.identity.name if self.proven is not None else ""


def identity_of(proven: VerifiedCertificate | None, refused: Refused | None, leaf_pem: bytes) -> str:
    """Return the key of an attach: the certificate's identity, or its digest if it names none.

    Refused attaches have keys of their own, so a revoked certificate displaces no attach of a valid one.
    """
    if proven is not None and refused is None:
        return str(proven.identity)
    if isinstance(refused, IdentityError) and refused.identity is not None:
        return f"refused {refused.identity}"
    return hashlib.sha256(leaf_pem).hexdigest()


class PendingAttaches:
    """The attaches under way, oldest first. ``most`` is the bound for each identity."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: dict[Attachment, PendingAttach] = {}
        self._by_identity: dict[str, dict[Attachment, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, attempt: Attachment, arrival: PendingAttach) -> Attachment | None:
        """Add one; return the oldest of its identity if that has to go, which is taken out."""
        own = self._by_identity.setdefault(arrival.identity, {})
        oldest = next(iter(own)) if len(own) >= self._most else None
        self._all[attempt] = arrival
        own[attempt] = None
        if oldest is not None:
            self.discard(oldest)
        return oldest

    def is_newest(self, attempt: Attachment) -> bool:
        """Return whether no later attach of its identity is under way."""
        arrival = self._all.get(attempt)
        return arrival is not None and next(reversed(self._by_identity[arrival.identity])) is attempt

    def find(self, attempt: Attachment) -> PendingAttach:
        return self._all[attempt]

    def discard(self, attempt: Attachment) -> None:
        """Take one out. Idempotent."""
        arrival = self._all.pop(attempt, None)
        if arrival is None:
            return
        own = self._by_identity[arrival.identity]
        del own[attempt]
        if not own:
            del self._by_identity[arrival.identity]
