"""What the agent's link looks like to people: one state, since when and why, and how it came to it. No I/O.

    attached   a request works
    degraded   attached, and something sent was not confirmed in time; a request may wait
    grace      the carrier is lost, the session and its streams are kept, attempts run
    away       no session: never had one, or it ended

``LinkHistory`` is written by ``state.AgentState``; ``LinkView`` is one look at it, for status page,
``/status.json`` and ``qanat-agent status``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tunnel_core.reasons import Reason
from tunnel_core.session.state import AWAY, SessionState, StateCategory

_KEPT_EVENTS = 20
RESUMED = "resumed"
"""An event's kind beside those named like the states: over a new carrier with every stream."""


class ViewEvent(NamedTuple):
    """A change of state. ``at`` is Unix time."""

    at: float
    kind: str
    reason: Reason | None
    detail: str


@dataclass(frozen=True, slots=True)
class LinkView:
    """Times are Unix times. ``grace_until`` counts in grace only; ``events`` are newest first."""

    state: SessionState
    since: float
    reason: Reason | None
    detail: str
    grace_until: float
    round_trip_seconds: float | None
    events: tuple[ViewEvent, ...]

    @property
    def word(self) -> str:
        """The state as people read it."""
        return word_of(self.state)


def word_of(state: SessionState) -> str:
    """A session that ended leaves an agent that is away, as one does that never began."""
    return AWAY if state.category is StateCategory.ABSENT else str(state.value)


class LinkHistory:
    """Away at first. ``clock`` gives Unix time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._state = SessionState.ENDED
        self._since = clock()
        self._reason: Reason | None = None
        self._detail = "not attached yet"
        self._grace_until = 0.0
        self._events: deque[ViewEvent] = deque(maxlen=_KEPT_EVENTS)

    def enter(
        self,
        state: SessionState,
        reason: Reason | None = None,
        detail: str = "",
        *,
        grace_seconds: float = 0.0,
        is_resumed: bool = False,
    ) -> None:
        """The link is in ``state`` from now on. To enter the present state again only renews the why.

        ``is_resumed``: it was moved to a new carrier just now, which is news in any state.
        """
        now = self._clock()
        if state is not self._state or is_resumed:
            kind = RESUMED if is_resumed else word_of(state)
            self._events.appendleft(ViewEvent(now, kind, reason, detail))
            self._state, self._since = state, now
            self._grace_until = now + grace_seconds
        self._reason, self._detail = reason, detail

    def view(self, round_trip_seconds: float | None) -> LinkView:
        return LinkView(
            self._state,
            self._since,
            self._reason,
            self._detail,
            self._grace_until,
            round_trip_seconds,
            tuple(self._events),
        )
