"""State of the agent's link for people: its state, time, cause and latest changes. No I/O.

    attached   a request works
    degraded   attached, but the server did not acknowledge a packet in time; a request may wait
    grace      the carrier is lost, the session and its streams are kept, attempts run
    away       no session yet, or the session has ended

``AgentState`` writes ``LinkHistory``. ``LinkView`` is a snapshot for the status page, ``/status.json`` and
``qanat-agent status``.
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
"""Kind of the event that a session continues over a new carrier. The other kinds are the states' words."""


class ViewEvent(NamedTuple):
    """A change of state. ``at`` is Unix time."""

    at: float
    kind: str
    reason: Reason | None
    detail: str


@dataclass(frozen=True, slots=True)
class LinkView:
    """Snapshot of the link's state. Times are Unix times, in seconds.

    ``grace_until`` is valid only in grace. ``events`` are newest first.
    """

    state: SessionState
    since: float
    reason: Reason | None
    detail: str
    grace_until: float
    round_trip_seconds: float | None
    events: tuple[ViewEvent, ...]

    @property
    def word(self) -> str:
        """The state's word for people."""
        return word_of(self.state)


def word_of(state: SessionState) -> str:
    """Return the word for ``state``: without a session, after its end or before the first, it is ``away``."""
    return AWAY if state.category is StateCategory.ABSENT else str(state.value)


class LinkHistory:
    """State and changes of a link, which is ``away`` at first. ``clock`` returns Unix time."""

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
        """Note that the link is in ``state``. In the same state, only ``reason`` and ``detail`` change.

        ``grace_seconds``: how long the session is kept in grace. ``is_resumed``: the session has just moved
        to a new carrier, which is an event in every state.
        """
        now = self._clock()
        if state is not self._state or is_resumed:
            kind = RESUMED if is_resumed else word_of(state)
            self._events.appendleft(ViewEvent(now, kind, reason, detail))
            self._state, self._since = state, now
            self._grace_until = now + grace_seconds
        self._reason, self._detail = reason, detail

    def view(self, round_trip_seconds: float | None) -> LinkView:
        """Return a snapshot with ``round_trip_seconds``, which only the session knows."""
        return LinkView(
            self._state,
            self._since,
            self._reason,
            self._detail,
            self._grace_until,
            round_trip_seconds,
            tuple(self._events),
        )
