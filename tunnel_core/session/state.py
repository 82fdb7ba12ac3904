"""How a session stands, in the same words on both ends, and what each word means to a request."""

from __future__ import annotations

import enum
from typing import NamedTuple

from tunnel_core.reasons import Reason

GONE = "gone"
"""The server's word for a node without a session."""
AWAY = "away"
"""The agent's word for the same."""


class StateCategory(enum.Enum):
    """What a new request meets. Code asks for the category and compares no state with another."""

    REACHABLE = "reachable"
    """The request is carried now; it may be slow."""
    WAITING = "waiting"
    """The link is lost and may come back: open streams are kept, a new one waits a few seconds."""
    ABSENT = "absent"
    """There is no session: the request is refused."""


class SessionState(enum.Enum):
    ATTACHED = "attached"
    DEGRADED = "degraded"
    """There is a carrier, and something sent over it is late."""
    GRACE = "grace"
    """There is no carrier; streams wait for the next one."""
    ENDED = "ended"

    @property
    def category(self) -> StateCategory:
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
    """Return the category of a state's word as it stands in JSON; None for a word of another version."""
    return _CATEGORIES.get(word) if isinstance(word, str) else None


class SessionEvent(enum.Enum):
    """What an owner of a link hears of."""

    LATE = "late"
    """Something is late. The agent only, and twice a second while it is."""
    LOST = "lost"
    RESUMED = "resumed"


class Loss(NamedTuple):
    """Since when there is no carrier, in the link's clock, and what became of the last one."""

    at: float
    reason: Reason
    detail: str
