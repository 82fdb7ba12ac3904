"""What the agent knows about itself, for its status page and its probes. Written by the attach loop."""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from certs.life import ValidityPeriod
from tunnel_agent.status.link_history import LinkHistory, LinkView
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason
from tunnel_core.session.state import Loss, SessionEvent, SessionState, StateCategory
from tunnel_core.session.statistics import SessionStatistics
from tunnel_core.wire.frames import Welcome

_KEPT_ERRORS = 10
_LATE = "something sent was not confirmed in time"


class OpenStream(Protocol):
    """What is told of a stream; ``tunnel_core.streams.tunnel_stream.TunnelStream`` has it."""

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


class AttachedLink(Protocol):
    """What the agent needs of a session once it is attached; ``tunnel_core.session.session.Link`` has it."""

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
    """What the attach loop does. How the link of a session stands is told by ``AgentState.link_view``."""

    CONNECTING = "connecting"
    IN_SESSION = "in_session"
    WAITING = "waiting"
    STOPPING = "stopping"


class Trouble(NamedTuple):
    """Something that went wrong, for people."""

    at: float
    """Unix time."""
    text: str


@dataclass
class AgentState:
    """Times are Unix times, since people read them."""

    node: str
    servers: tuple[str, ...]
    clock: Callable[[], float] = time.time
    phase: Phase = Phase.CONNECTING
    server: str = ""
    """The server that is being tried, or attached to."""
    link: AttachedLink | None = None
    next_attempt_at: float = 0.0
    sessions: int = 0
    """Attached so far, by this process."""
    certificate: ValidityPeriod | None = None
    renews_at: datetime | None = None
    troubles: deque[Trouble] = field(default_factory=lambda: deque(maxlen=_KEPT_ERRORS))

    def __post_init__(self) -> None:
        self.started_at = self.clock()
        self._history = LinkHistory(self.clock)

    @property
    def is_attached(self) -> bool:
        """Whether a request would be carried now: not while the link is lost."""
        return self.link is not None and self.link.state.category is StateCategory.REACHABLE

    @property
    def link_view(self) -> LinkView:
        self.look()
        return self._history.view(self.link.statistics().round_trip_seconds if self.link else None)

    def look(self, event: SessionEvent | None = None) -> None:
        """Notes how the link stands. To be called with each of its events; they do not tell all of it."""
        link = self.link
        if link is None or link.state.category is StateCategory.ABSENT:
            return  # ``detached`` follows, and knows why
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
        self._enter(Phase.CONNECTING)
        self.server = server

    def attached(self, link: AttachedLink) -> None:
        self._enter(Phase.IN_SESSION)
        self.link = link
        self.sessions += 1
        self.look()

    def detached(self, reason: Reason | None = None, detail: str = "") -> None:
        """The session is over, if there was one."""
        if self.link is not None:
            self.link = None
            self._history.enter(SessionState.ENDED, reason, detail)

    def waiting(self, seconds: float) -> None:
        self._enter(Phase.WAITING)
        self.next_attempt_at = self.clock() + seconds

    def stopping(self) -> None:
        self._enter(Phase.STOPPING)

    def trouble(self, text: str) -> None:
        self.troubles.append(Trouble(self.clock(), text))

    def _enter(self, phase: Phase) -> None:
        if self.phase is not Phase.STOPPING:
            self.phase = phase
