"""Credential watches for tests without revocations, or without interest in what the watch ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from tunnel_server.auth.credential_watch import CredentialEnded, CredentialWatch
from tunnel_server.auth.revocation_list import RevocationList


def now() -> datetime:
    return datetime.now(UTC)


def credential_watch(
    revoked: RevocationList | None = None,
    wall: Callable[[], datetime] = now,
    on_ended: Callable[[CredentialEnded], None] = lambda ended: None,
) -> CredentialWatch:
    """Return a watch that uses ``revoked``."""
    return CredentialWatch(revoked or RevocationList(), wall, on_ended)
