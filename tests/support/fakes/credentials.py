"""Credential watches for tests that revoke nothing, or look at nothing that was ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from tunnel_server.auth.credential_watch import Ended, Standing
from tunnel_server.auth.revocation_list import Revoked


def now() -> datetime:
    return datetime.now(UTC)


def credential_watch(
    revoked: Revoked | None = None,
    wall: Callable[[], datetime] = now,
    on_ended: Callable[[Ended], None] = lambda ended: None,
) -> Standing:
    """A watch that goes by ``revoked``."""
    return Standing(revoked or Revoked(), wall, on_ended)
