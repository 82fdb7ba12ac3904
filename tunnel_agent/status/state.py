"""State of the agent for its status page and its probes. The attach loop writes it."""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from certs.validity import ValidityPeriod
from tunnel_agent.status.link_history import LinkHistory, LinkView
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason
from tunnel_core.session.state import Loss, SessionEvent, SessionState, StateCategory
from tunnel_core.session.statistics import SessionStatistics
from tunnel_core.wire.frames import Welcome

_KEPT_ERRORS = 10
_LATE = "the server did not acknowledge a packet in time"


class OpenStream(Protocol):
    """Attributes of a stream that the status shows; ``TunnelStream`` fulfils it."""

    @property
    def id(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def entrance(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...


class AttachedSession(Protocol):
    """An attached session, as far as the agent uses it; ``tunnel_core``'s ``Session`` fulfils it."""

    @property
    def session_id(self) -> str: ...
    @property
    def state(self) -> SessionState: ...
    @property
    def lost(self) -> Loss | None: ...
    @property
    def welcome(self) -> Welcome: ...
    @property
    def software(self) -> str: ...
    @property
    def streams(self) -> Mapping[int, OpenStream]: ...
    @property
    def mux_streams(self) -> Iterable[StreamState]: ...
    def statistics(self) -> SessionStatistics: ...
    def drain(self, deadline_seconds: float) -> None: ...
    def end(self, reason: Reason, detail: str = "") -> None: ...
    async def wait_no_streams(self) -> None: ...
    async def wait_ended(self) -> tuple[Reason, str]: ...


class Phase(enum.Enum):
    """Phase of the attach loop. ``AgentState.link_view`` has the state of the link."""

    CONNECTING = "connecting"
    IN_SESSION = "in_session"
    WAITING = "waiting"
    STOPPING = "stopping"


class Trouble(NamedTuple):
    """An error, for people."""

    at: float
    """Unix time."""
    text: str


@dataclass
class AgentState:
    """State of one agent. Times are Unix times, because people read them."""

    node: str
    servers: tuple[str, ...]
    clock: Callable[[], float] = time.time
    phase: Phase = Phase.CONNECTING
    server: str = ""
    """The server of the present attempt or session."""
    link: AttachedSession | None = None
    next_attempt_at: float = 0.0
    sessions: int = 0
    """Number of sessions that this process has had."""
    certificate: ValidityPeriod | None = None
    renews_at: datetime | None = None
    troubles: deque[Trouble] = field(default_factory=lambda: deque(maxlen=_KEPT_ERRORS))

    def __post_init__(self) -> None:
        self.started_at = self.clock()
        self._history = LinkHistory(self.clock)

    @property
    def is_attached(self) -> bool:
        """Whether a request works now. It does not while the link is lost."""
        return self.link is not None and self.link.state.category is StateCategory.REACHABLE

    @property
    def link_view(self) -> LinkView:
        """Snapshot of the link's state, as of now."""
        self.note_link()
        return self._history.view(self.link.statistics().round_trip_seconds if self.link else None)

    def note_link(self, event: SessionEvent | None = None) -> None:
        """Note the link's state. Called for each event, and without one, because late answers cause none."""
        link = self.link
        if link is None or link.state.category is StateCategory.ABSENT:
            return  # ``detached`` follows with the reason
        match link.state:
            case SessionState.GRACE if link.lost is not None:
                seconds = link.welcome.grace_ms / 1000
                self._history.enter(link.state, link.lost.reason, link.lost.detail, grace_seconds=seconds)
            case SessionState.DEGRADED:
                self._history.enter(link.state, None, _LATE, is_resumed=event is SessionEvent.RESUMED)
            case state:
                self._history.enter(state, is_resumed=event is SessionEvent.RESUMED)

    @property
    def is_stopping(self) -> bool:
        return self.phase is Phase.STOPPING

    def connecting(self, server: str) -> None:
        """Note an attempt to attach to ``server``."""
        self._enter(Phase.CONNECTING)
        self.server = server

    def attached(self, link: AttachedSession) -> None:
        """Note that a session began."""
        self._enter(Phase.IN_SESSION)
        self.link = link
        self.sessions += 1
        self.note_link()

    def detached(self, reason: Reason | None = None, detail: str = "") -> None:
        """Note the end of the session, if there is one."""
        if self.link is not None:
            self.link = None
            self._history.enter(SessionState.ENDED, reason, detail)

    def waiting(self, seconds: float) -> None:
        """Note that the next attempt begins in ``seconds``."""
        self._enter(Phase.WAITING)
        self.next_attempt_at = self.clock() + seconds

    def stopping(self) -> None:
        """Note that the agent stops. No other phase follows."""
        self._enter(Phase.STOPPING)

    def trouble(self, text: str) -> None:
        """Note an error; the state keeps the latest ten."""
        self.troubles.append(Trouble(self.clock(), text))

    def _enter(self, phase: Phase) -> None:
        if self.phase is not Phase.STOPPING:
            self.phase = phase
