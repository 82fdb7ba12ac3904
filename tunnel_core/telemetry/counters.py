"""Counters of events, in plain dictionaries; ``prometheus.py`` renders them when a scraper asks.

The counters are apart from ``prometheus.py``, so that an agent without a scraper does not load a metrics
library. They are not thread-safe: count in the trio thread. A :meth:`Counters.snapshot` may go to another
thread.
"""

from __future__ import annotations

import bisect
import copy
from collections import Counter, defaultdict
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
    """Number of durations in each bucket; the last bucket has no upper bound."""

    __slots__ = ("counts", "sum_seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BUCKETS_SECONDS) + 1)
        self.sum_seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect.bisect_left(LATENCY_BUCKETS_SECONDS, seconds)] += 1
        self.sum_seconds += seconds


@dataclass(frozen=True, slots=True)
class NodeSample:
    """The five series of a node. ``detached_seconds`` is None while a request can reach the node."""

    node: str
    detached_seconds: float | None = None
    round_trip_seconds: float | None = None
    streams: int = 0
    bytes_in: int = 0
    """Bytes received from the node."""
    bytes_out: int = 0


class CapSample(NamedTuple):
    """The cap on a link's rate, and the time and bytes that it has delayed so far."""

    bytes_per_second: int
    delayed_seconds: float
    delayed_bytes: int


@dataclass(slots=True)
class Counters:
    """All counters of one process.

    An unknown entrance counts as ``other``, because an agent gets the names of entrances from its peer.
    """

    open_streams: Counter[str] = field(default_factory=Counter)
    closed_streams: Counter[tuple[str, str]] = field(default_factory=Counter)
    bytes_moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    unauthenticated_refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    attaches: Counter[str] = field(default_factory=Counter)
    session_ends: Counter[str] = field(default_factory=Counter)
    node_events: Counter[str] = field(default_factory=Counter)
    dials: defaultdict[str, Distribution] = field(default_factory=lambda: defaultdict(Distribution))
    first_bytes: defaultdict[str, Distribution] = field(default_factory=lambda: defaultdict(Distribution))

    def stream_opened(self, entrance: str) -> None:
        """Count a stream whose target was reached."""
        self.open_streams[entrance_label(entrance)] += 1

    def stream_closed(
        self, entrance: str, reason: Reason, *, bytes_to_target: int = 0, bytes_to_user: int = 0
    ) -> None:
        """Count the end of a stream. Call it once for each ``stream_opened``."""
        label = entrance_label(entrance)
        self.open_streams[label] -= 1
        self.closed_streams[label, reason.word] += 1
        self.bytes_moved[label, "to_target"] += bytes_to_target
        self.bytes_moved[label, "to_user"] += bytes_to_user

    def refused(self, entrance: str, reason: Reason) -> None:
        """Count a refusal to an authenticated user, or a target that the agent could not reach."""
        self.refusals[entrance_label(entrance), reason.word] += 1

    def refused_unauthenticated(self, entrance: str, reason: Reason) -> None:
        """Count a refusal before authentication."""
        self.unauthenticated_refusals[entrance_label(entrance), reason.word] += 1

    def attached(self, outcome: Reason = Reason.DONE) -> None:
        """Count an attach that succeeded (``DONE``), or failed for another reason."""
        self.attaches["ok" if outcome is Reason.DONE else outcome.word] += 1

    def resumed(self) -> None:
        """Count a session that resumed over a new carrier."""
        self.attaches["resumed"] += 1

    def attach_abandoned(self) -> None:
        """Count an attach that the agent abandoned, because it chose another carrier or stopped."""
        self.attaches["abandoned"] += 1

    def session_ended(self, reason: Reason) -> None:
        """Count the end of a session."""
        self.session_ends[reason.word] += 1

    def node_event(self, kind: str) -> None:
        """Count an event of a node; ``kind`` is one of a few words."""
        self.node_events[kind] += 1

    def dialled(self, entrance: str, seconds: float) -> None:
        """Count a dial: at the server from the user's request to ``opened``, at the agent the dial alone."""
        self.dials[entrance_label(entrance)].add(seconds)

    def first_byte(self, entrance: str, seconds: float) -> None:
        """Count the time from the user's request to the target's first byte, at the server alone."""
        self.first_bytes[entrance_label(entrance)].add(seconds)

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
        """Return a copy that another thread may read. Without ``nodes`` it has no series of nodes."""
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
    """The counters at one moment, with the figures of sessions and nodes."""

    counters: Counters
    sessions: int
    nodes: tuple[NodeSample, ...]
    software: str
    audit_dropped: int | None = None
    """Lost lines of the audit; None if the program writes no audit."""
    credit_granted_bytes: int = 0
    """Bytes that peers may send, or have sent and the streams' owners have not read, over all streams."""
    retained_bytes: int = 0
    """Bytes sent and kept for retransmission until the peers acknowledge them, over all sessions."""
    log_lines_dropped: int = 0
    """Log lines that were lost because their reader stopped or the output failed."""
    cap: CapSample | None = None
    """None if no cap is set."""
