"""Which sessions this server holds, and who may go on with one. No I/O, no clock.

A session is its agent's who shows the node's certificate and the secret of the welcome. One that ended
is unknown, as one of a server before this one is: the agent gets a new session, and learns that the
old one is lost. Attempts race, so only one above the highest that was used may be used.
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
    """One session. ``used`` is the highest attempt that it was moved to."""

    node: str
    link: Session
    used: int


class Sessions:
    """The sessions that have not ended, by their ids."""

    def __init__(self) -> None:
        self._held: dict[bytes, HeldSession] = {}

    def add(self, link: Session, attempt: int) -> None:
        """A new session, which its first attempt carries."""
        self._held[link.welcome.session] = HeldSession(link.node, link, attempt)

    def discard(self, link: Session) -> None:
        """It ended."""
        self._held.pop(link.welcome.session, None)

    def maybe_find(self, node: str, hello: Hello) -> HeldSession | None:
        """The session that ``node`` asks to go on with; None for a new one.

        Raises ``Refused`` for another node's session, a wrong secret, an attempt that comes too late.
        """
        held = self._held.get(hello.session) if hello.session else None
        if held is None or held.link.ended is not None:
            return None
        if held.node != node or not hmac.compare_digest(held.link.welcome.secret, hello.secret):
            raise Refused(Reason.SESSION_MISMATCH)
        _check_attempt(held, hello.attempt)
        return held

    def use(self, held: HeldSession, attempt: int) -> None:
        """The session moves to this attempt now. Asked again, as time has passed since its hello."""
        if held.link.ended is not None:
            raise Refused(Reason.UNKNOWN_SESSION)
        _check_attempt(held, attempt)
        held.used = attempt


def _check_attempt(held: HeldSession, attempt: int) -> None:
    if attempt <= held.used:
        raise Refused(Reason.STALE_ATTEMPT, f"attempt {attempt} after attempt {held.used} was used")
