"""What happened, as plain numbers: counted for the price of a dictionary, shown by ``prometheus`` when asked.

Apart from ``prometheus.py``, because an agent that nobody scrapes should not pay for a metrics library.
Not thread-safe: count in the trio thread; :meth:`Counters.snapshot` may then leave it.
"""

from __future__ import annotations

import bisect
import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tunnel_core.config.types import entrance_label
from tunnel_core.reasons import Reason

# From loopback to the longest deadline; wide, because each bucket is a series for each entrance.
LATENCY_BUCKETS_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
NODE_SERIES_SECONDS = 3600.0
"""How long a detached node keeps its series."""


class Distribution:
    """How often a duration fell into which bucket; the last bucket has no upper bound."""

    __slots__ = ("counts", "sum_seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BUCKETS_SECONDS) + 1)
        self.sum_seconds = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(LATENCY_BUCKETS_SECONDS, seconds)] += 1
        self.sum_seconds += seconds


@dataclass(frozen=True, slots=True)
class NodeSample:
    """The five series of a node. ``detached_seconds`` is None while a request can reach it."""

    node: str
    detached_seconds: float | None = None
    round_trip_seconds: float | None = None
    streams: int = 0
    bytes_in: int = 0
    """Received from the node."""
    bytes_out: int = 0


class CapSample(NamedTuple):
    """What a cap on a link's rate is, and what it has cost so far."""

    bytes_per_second: int
    delayed_seconds: float
    delayed_bytes: int


@dataclass(slots=True)
class Counters:
    """Everything that is counted in one process. Entrances that are not known count as ``other``,
    since an agent hears their names from its peer."""

    open_streams: Counter[str] = field(default_factory=Counter)
    closed_streams: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes_moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    unauthenticated_refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    attaches: Counter[str] = field(default_factory=Counter)
    session_ends: Counter[str] = field(default_factory=Counter)
    node_events: Counter[str] = field(default_factory=Counter)
    dials: dict[str, Distribution] = field(default_factory=dict)
    first_bytes: dict[str, Distribution] = field(default_factory=dict)

    def stream_opened(self, entrance: str) -> None:
        self.open_streams[entrance_label(entrance)] += 1

    def stream_closed(
        self, entrance: str, reason: Reason, *, bytes_to_target: int = 0, bytes_to_user: int = 0
    ) -> None:
        """Once for each ``stream_opened``."""
        label = entrance_label(entrance)
        self.open_streams[label] -= 1
        self.closed_streams[label, reason.word] += 1
        self.bytes_moved[label, "to_target"] += bytes_to_target
        self.bytes_moved[label, "to_user"] += bytes_to_user

    def refused(self, entrance: str, reason: Reason) -> None:
        """A user who is known was told no, or the target could not be reached."""
        self.refusals[entrance_label(entrance), reason.word] += 1

    def refused_unauthenticated(self, entrance: str, reason: Reason) -> None:
        self.unauthenticated_refusals[entrance_label(entrance), reason.word] += 1

    def attached(self, outcome: Reason = Reason.DONE) -> None:
        """An attach succeeded, or failed for a reason."""
        self.attaches["ok" if outcome is Reason.DONE else outcome.word] += 1

    def resumed(self) -> None:
        """A session went on over a new carrier."""
        self.attaches["resumed"] += 1

    def attach_abandoned(self) -> None:
        """The agent left before its attach was done, for another attempt or for good."""
        self.attaches["abandoned"] += 1

    def session_ended(self, reason: Reason) -> None:
        self.session_ends[reason.word] += 1

    def node_event(self, kind: str) -> None:
        """Something befell a node; ``kind`` is one of a few words."""
        self.node_events[kind] += 1

    def dialled(self, entrance: str, seconds: float) -> None:
        """From ``open`` to ``opened``; at the agent from the dial's start to its end."""
        label = entrance_label(entrance)
        if label not in self.dials:
            self.dials[label] = Distribution()
        self.dials[label].add(seconds)

    def first_byte(self, entrance: str, seconds: float) -> None:
        """From the user's first byte to the target's."""
        label = entrance_label(entrance)
        if label not in self.first_bytes:
            self.first_bytes[label] = Distribution()
        self.first_bytes[label].add(seconds)

    def snapshot(
        self,
        *,
        sessions: int,
        nodes: Iterable[NodeSample] = (),
        software: str = "",
        credit_granted_bytes: int = 0,
        retained_bytes: int = 0,
        cap: CapSample | None = None,
        audit_dropped: int | None = None,
        log_lines_dropped: int = 0,
    ) -> Snapshot:
        """A copy that another thread may read; ``nodes`` empty leaves the per-node series out."""
        shown = (n for n in nodes if n.detached_seconds is None or n.detached_seconds < NODE_SERIES_SECONDS)
        return Snapshot(
            counters=copy.deepcopy(self),
            sessions=sessions,
            nodes=tuple(shown),
            software=software,
            audit_dropped=audit_dropped,
            log_lines_dropped=log_lines_dropped,
            credit_granted_bytes=credit_granted_bytes,
            retained_bytes=retained_bytes,
            cap=cap,
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    counters: Counters
    sessions: int
    nodes: tuple[NodeSample, ...]
    software: str
    audit_dropped: int | None = None
    """Lines of the audit that were lost; None where there is no audit."""
    credit_granted_bytes: int = 0
    """What peers may send, or have sent and nobody read yet, over all streams."""
    retained_bytes: int = 0
    """Bytes that were sent and are kept until the peers confirm them, over all sessions."""
    log_lines_dropped: int = 0
    """Lines of the log that were lost, because their reader stopped or the output failed."""
    cap: CapSample | None = None
    """None where no cap is set."""
