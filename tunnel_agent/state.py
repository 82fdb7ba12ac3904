"""What the agent knows about itself, for its status page and its probes. Written by the attach loop."""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tunnel_agent.link_view import LinkHistory, LinkView, ViewState
from tunnel_core.mux_stream import MuxStream
from tunnel_core.reasons import Reason
from tunnel_core.states import LinkState

_KEPT_ERRORS = 10


class OpenStream(Protocol):
    """What is told of a stream; ``tunnel_core.stream.Stream`` has it."""

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
    """What the agent needs of a session once it is attached; ``tunnel_core.link.Link`` has it."""

    @property
    def session_id(self) -> str: ...
    @property
    def state(self) -> LinkState: ...
    @property
    def lost_seconds(self) -> float | None: ...
    @property
    def software(self) -> str: ...
    @property
    def round_trip_seconds(self) -> float | None: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def streams(self) -> Mapping[int, OpenStream]: ...
    @property
    def credit_granted(self) -> int: ...
    @property
    def mux_streams(self) -> Iterable[MuxStream]: ...
    def drain(self, deadline_seconds: float) -> None: ...
    def end(self, reason: Reason, detail: str = "") -> None: ...
    async def wait_no_streams(self) -> None: ...
    async def wait_ended(self) -> tuple[Reason, str]: ...


class Phase(enum.Enum):
    CONNECTING = "connecting"
    ATTACHED = "attached"
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
    since: float = 0.0
    server: str = ""
    """The server that is being tried, or attached to."""
    link: AttachedLink | None = None
    next_attempt_at: float = 0.0
    sessions: int = 0
    """Attached so far, by this process."""
    troubles: deque[Trouble] = field(default_factory=lambda: deque(maxlen=_KEPT_ERRORS))

    def __post_init__(self) -> None:
        self.started_at = self.since = self.clock()
        self.history = LinkHistory(self.clock)

    @property
    def is_attached(self) -> bool:
        """Whether a request would be carried now: not while the link is lost."""
        return self.link is not None and self.link.state in (LinkState.ATTACHED, LinkState.DEGRADED)

    @property
    def shown_phase(self) -> str:
        """The phase for people: an attached agent says how its link stands."""
        known = self.link is not None and self.phase is Phase.ATTACHED
        return str(self.link.state.value if known and self.link else self.phase.value)

    @property
    def seconds_in_phase(self) -> float:
        lost = self.link.lost_seconds if self.link else None
        return max(0.0, self.clock() - self.since) if lost is None else lost

    @property
    def link_view(self) -> LinkView:
        return self.history.view(self.link.round_trip_seconds if self.link else None)

    @property
    def is_stopping(self) -> bool:
        return self.phase is Phase.STOPPING

    def connecting(self, server: str) -> None:
        self._enter(Phase.CONNECTING)
        self.server = server

    def attached(self, link: AttachedLink) -> None:
        self._enter(Phase.ATTACHED)
        self.link = link
        self.sessions += 1
        self.history.enter(ViewState.ATTACHED)

    def detached(self, reason: Reason | None = None, detail: str = "") -> None:
        """The session is over, if there was one. Without a detail the last trouble tells why."""
        if self.link is not None:
            self.link = None
            self.history.enter(ViewState.AWAY, reason, detail or self._last_trouble)

    def waiting(self, seconds: float) -> None:
        self._enter(Phase.WAITING)
        self.next_attempt_at = self.clock() + seconds

    def stopping(self) -> None:
        self._enter(Phase.STOPPING)

    def trouble(self, text: str) -> None:
        self.troubles.append(Trouble(self.clock(), text))

    @property
    def _last_trouble(self) -> str:
        return self.troubles[-1].text if self.troubles else ""

    def _enter(self, phase: Phase) -> None:
        if self.phase not in {phase, Phase.STOPPING}:
            self.phase, self.since = phase, self.clock()
