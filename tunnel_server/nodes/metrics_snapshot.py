"""The server's figures at one moment, for ``/metrics``."""

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
    """What ``/metrics`` shows. ``clock`` is the one that the registry goes by."""
    sessions = [link.statistics() for _, link in nodes.attached()]
    return counters.snapshot(
        sessions=len(sessions),
        nodes=_samples(nodes, clock()) if per_node else (),
        software=f"qanat-server/{__version__}",
        audit_dropped=audit_dropped,
        log_lines_dropped=lines_dropped(),
        credit_granted_bytes=sum(session.credit_granted for session in sessions),
        retained_bytes=sum(session.retained_bytes for session in sessions),
    )


def _samples(nodes: Nodes, now: float) -> list[NodeSample]:
    """A node that never attached has no figures."""
    samples = (_sample(node, now) for node in nodes.all())
    return [sample for sample in samples if sample is not None]


def _sample(node: Node, now: float) -> NodeSample | None:
    link = node.link
    if link is None:
        seen = node.last_seen
        return None if seen is None else NodeSample(node.name, detached_seconds=now - seen)
    session = link.statistics()
    return NodeSample(
        node.name,
        session.lost_seconds,
        session.round_trip_seconds,
        session.open_streams,
        session.bytes_in,
        session.bytes_out,
    )
