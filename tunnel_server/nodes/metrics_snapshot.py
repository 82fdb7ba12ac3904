"""Snapshot of the server's figures for ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable

from tunnel_core.telemetry.counters import Counters, NodeSample, Snapshot
from tunnel_core.telemetry.queued_output import lines_dropped
from tunnel_core.version import __version__
from tunnel_server.nodes.registry import Node, Nodes


def take_snapshot(
    counters: Counters,
    nodes: Nodes,
    clock: Callable[[], float],
    *,
    per_node: bool,
    audit_dropped: int = 0,
) -> Snapshot:
    """Return the figures for ``/metrics``. ``clock`` is the monotonic clock of the registry, in seconds."""
    sessions = [session.statistics() for _, session in nodes.attached()]
    return counters.snapshot(
        sessions=len(sessions),
        nodes=_samples(nodes, clock()) if per_node else (),
        software=f"qanat-server/{__version__}",
        audit_dropped=audit_dropped,
        log_lines_dropped=lines_dropped(),
        credit_granted_bytes=sum(statistics.credit_granted for statistics in sessions),
        retained_bytes=sum(statistics.retained_bytes for statistics in sessions),
    )


def _samples(nodes: Nodes, now: float) -> list[NodeSample]:
    """Return a sample for each node that attached at least once."""
    samples = (_sample(node, now) for node in nodes.all())
    return [sample for sample in samples if sample is not None]


def _sample(node: Node, now: float) -> NodeSample | None:
    if node.session is None:
        seen = node.last_seen
        return None if seen is None else NodeSample(node.name, detached_seconds=now - seen)
    statistics = node.session.statistics()
    return NodeSample(
        node.name,
        statistics.lost_seconds,
        statistics.round_trip_seconds,
        statistics.open_streams,
        statistics.bytes_in,
        statistics.bytes_out,
    )
