"""The server's figures at one moment, for ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable

from tunnel_core.counters import Counters, NodeSample, Snapshot
from tunnel_core.queued_output import lines_dropped
from tunnel_core.version import __version__
from tunnel_server.nodes import Node, Nodes


def take_snapshot(
    counters: Counters,
    nodes: Nodes,
    clock: Callable[[], float],
    *,
    per_node: bool,
    audit_dropped: int = 0,
) -> Snapshot:
    """What ``/metrics`` shows. ``clock`` is the one that the registry goes by."""
    links = [link for _, link in nodes.attached()]
    return counters.snapshot(
        sessions=len(links),
        nodes=_samples(nodes, clock()) if per_node else (),
        software=f"qanat-server/{__version__}",
        audit_dropped=audit_dropped,
        log_lines_dropped=lines_dropped(),
        credit_granted_bytes=sum(link.credit_granted for link in links),
        retained_bytes=sum(link.retained_bytes for link in links),
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
    return NodeSample(
        node.name,
        link.lost_seconds,
        link.round_trip_seconds,
        len(link.streams),
        link.bytes_in,
        link.bytes_out,
    )
