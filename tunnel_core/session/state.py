"""States of a session, named alike on both ends, and the effect of each state on a new request."""

from __future__ import annotations

import enum
from typing import NamedTuple

from tunnel_core.reasons import Reason

GONE = "gone"
"""The server's word for a node without a session."""
AWAY = "away"
"""The agent's word while it has no session."""


class StateCategory(enum.Enum):
    """Effect of a state on a new request. Code compares categories, never states."""

    REACHABLE = "reachable"
    """The request is carried now; it may be slow."""
    WAITING = "waiting"
    """The carrier is lost and the agent may resume: open streams are kept, a new one waits a few seconds."""
    ABSENT = "absent"
    """There is no session: the request is refused."""


class SessionState(enum.Enum):
    """State of a session, as both ends, the metrics and the API spell it."""

    ATTACHED = "attached"
    DEGRADED = "degraded"
    """There is a carrier, and an acknowledgement or a pong over it is late."""
    GRACE = "grace"
    """There is no carrier; streams wait for the next one."""
    ENDED = "ended"

    @property
    def category(self) -> StateCategory:
        """Effect of the state on a new request."""
        match self:
            case SessionState.ATTACHED | SessionState.DEGRADED:
                return StateCategory.REACHABLE
            case SessionState.GRACE:
                return StateCategory.WAITING
            case SessionState.ENDED:
                return StateCategory.ABSENT


_ABSENT_WORDS = {GONE: StateCategory.ABSENT, AWAY: StateCategory.ABSENT}
_CATEGORIES = {state.value: state.category for state in SessionState} | _ABSENT_WORDS


def category_of_word(word: object) -> StateCategory | None:
    """Return the category of a state's JSON word; None for a word that only another version knows."""
    return _CATEGORIES.get(word) if isinstance(word, str) else None


class SessionEvent(enum.Enum):
    """Events that a session reports to its owner."""

    LATE = "late"
    """An acknowledgement or a pong is late. Reported by the agent only, twice a second while it lasts."""
    LOST = "lost"
    RESUMED = "resumed"


class Loss(NamedTuple):
    """Start of the time without a carrier (trio's clock), and why the last carrier was lost."""

    at: float
    reason: Reason
    detail: str
