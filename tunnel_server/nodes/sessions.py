"""The sessions of this server, and the check of an agent that resumes one. No I/O, no clock.

To resume a session an agent shows the node's certificate and the secret of the welcome. A session that ended,
or that an earlier run of the server held, is unknown. Its agent gets a new session and learns that the old
session is lost. Attempts race, so the server accepts only an attempt above the highest one used.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnel_core.reasons import Reason, Refused
from tunnel_core.wire.frames import Hello

if TYPE_CHECKING:
    from tunnel_core.session.session import Session


@dataclass(slots=True)
class HeldSession:
    """One session. ``used`` is the number of the newest attempt whose carrier the session moved to."""

    node: str
    session: Session
    used: int


class Sessions:
    """The sessions that have not ended, by id."""

    def __init__(self) -> None:
        self._held: dict[bytes, HeldSession] = {}

    def add(self, session: Session, attempt: int) -> None:
        """Add a new session. ``attempt`` is the number of its first attempt."""
        self._held[session.welcome.session] = HeldSession(session.node, session, attempt)

    def discard(self, session: Session) -> None:
        """Remove a session that ended. Idempotent."""
        self._held.pop(session.welcome.session, None)

    def maybe_find(self, node: str, hello: Hello) -> HeldSession | None:
        """Return the session that the hello of ``node`` resumes; None if the agent needs a new session.

        Raises ``Refused`` for another node's session, for a wrong secret, and for an attempt that is too old.
        """
        held = self._held.get(hello.session) if hello.session else None
        if held is None or held.session.ended is not None:
            return None
        if held.node != node or not hmac.compare_digest(held.session.welcome.secret, hello.secret):
            raise Refused(Reason.SESSION_MISMATCH)
        _check_attempt(held, hello.attempt)
        return held

    def use(self, held: HeldSession, attempt: int) -> None:
        """Record that the session moves to this attempt.

        Raises ``Refused`` if the session ended, or if a newer attempt was used, since the hello was checked.
        """
        if held.session.ended is not None:
            raise Refused(Reason.UNKNOWN_SESSION)
        _check_attempt(held, attempt)
        held.used = attempt


def _check_attempt(held: HeldSession, attempt: int) -> None:
    if attempt <= held.used:
        raise Refused(Reason.STALE_ATTEMPT, f"attempt {attempt} after attempt {held.used} was used")
