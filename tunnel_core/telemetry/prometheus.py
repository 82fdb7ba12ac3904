"""The Prometheus page, rendered from a snapshot of the counters. The only module that uses prometheus_client.

Import this module late: it costs some MB, and only a scrape needs it. ``exposition`` reads only its arguments
and the figures of the process. So run it in a thread, because a page of thousands of nodes would delay
streams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from tunnel_core.telemetry.counters import (
    LATENCY_BUCKETS_SECONDS,
    CapSample,
    Counters,
    Distribution,
    NodeSample,
    Snapshot,
)
from tunnel_core.version import form

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "qanat_"
_BUCKET_LABELS = (*(str(bound) for bound in LATENCY_BUCKETS_SECONDS), "+Inf")


def exposition(snapshot: Snapshot, *, tasks: int = 0) -> bytes:
    """Return the page in Prometheus' text format, ``CONTENT_TYPE``. ``tasks`` is the number of trio tasks."""
    registry = CollectorRegistry()
    registry.register(_Page(snapshot, tasks))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Page:
    """Collector of one snapshot."""

    def __init__(self, snapshot: Snapshot, tasks: int) -> None:
        self._snapshot = snapshot
        self._tasks = tasks

    def collect(self) -> Iterator[Metric]:
        yield _build(self._snapshot.software)
        yield GaugeMetricFamily(f"{_PREFIX}sessions", "Sessions attached now.", self._snapshot.sessions)
        credit = self._snapshot.credit_granted_bytes
        granted = f"{_PREFIX}credit_granted_bytes"
        yield GaugeMetricFamily(granted, "Bytes that peers may send or that wait to be read.", credit)
        retained, sent = f"{_PREFIX}send_retained_bytes", self._snapshot.retained_bytes
        yield GaugeMetricFamily(retained, "Bytes that were sent and are not acknowledged yet.", sent)
        yield GaugeMetricFamily(
            f"{_PREFIX}tasks", "Tasks alive; a leak shows as growth at rest.", self._tasks
        )
        yield from _stream_metrics(self._snapshot.counters)
        yield from _event_metrics(self._snapshot.counters)
        dropped = self._snapshot.audit_dropped
        if dropped is not None:
            yield CounterMetricFamily(f"{_PREFIX}audit_dropped", "Lines of the audit lost.", dropped)
        lost = self._snapshot.log_lines_dropped
        yield CounterMetricFamily(f"{_PREFIX}log_lines_dropped", "Lines of the log lost.", lost)
        if self._snapshot.cap is not None:
            yield from _cap_metrics(self._snapshot.cap)
        yield from _node_metrics(self._snapshot.nodes)


def _build(software: str) -> Metric:
    family = GaugeMetricFamily(
        f"{_PREFIX}build_info", "Software of this process; always 1.", labels=["software", "form"]
    )
    family.add_metric([software, form()], 1)
    return family


def _stream_metrics(counters: Counters) -> Iterator[Metric]:
    streams = GaugeMetricFamily(f"{_PREFIX}streams_open", "Streams open now.", labels=["entrance"])
    for entrance, count in counters.open_streams.items():
        streams.add_metric([entrance], count)
    yield streams
    yield _by_two("streams", "Streams that have ended.", "reason", counters.closed_streams)
    yield _by_two("stream_bytes", "Bytes of ended streams.", "direction", counters.bytes_moved)
    yield _durations(
        "dial_seconds",
        "At the server from the user's request to the agent's answer; at the agent the dial alone.",
        counters.dials,
    )
    yield _durations(
        "first_byte_seconds",
        "From the user's request to the first byte of the target.",
        counters.first_bytes,
    )


def _event_metrics(counters: Counters) -> Iterator[Metric]:
    yield _by_two("refusals", "Streams that were refused.", "reason", counters.refusals)
    unauthenticated = counters.unauthenticated_refusals
    yield _by_two("unauthenticated_refusals", "Refusals before authentication.", "reason", unauthenticated)
    yield _by_one("attaches", "Attaches by outcome.", "outcome", counters.attaches)
    yield _by_one("session_ends", "Sessions that have ended.", "reason", counters.session_ends)
    yield _by_one("node_events", "Events of nodes.", "kind", counters.node_events)


def _cap_metrics(cap: CapSample) -> Iterator[Metric]:
    name = f"{_PREFIX}link_cap"
    yield GaugeMetricFamily(f"{name}_bytes_per_second", "The most the link may send.", cap.bytes_per_second)
    yield CounterMetricFamily(
        f"{name}_delayed_seconds", "Time in which the cap delayed bytes.", cap.delayed_seconds
    )
    yield CounterMetricFamily(f"{name}_delayed_bytes", "Bytes that the cap delayed.", cap.delayed_bytes)


def _by_one(name: str, help_text: str, label: str, counts: Counter[str]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, help_text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _by_two(name: str, help_text: str, label: str, counts: Counter[tuple[str, str]]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, help_text, labels=["entrance", label])
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _durations(name: str, help_text: str, durations: Mapping[str, Distribution]) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, help_text, labels=["entrance"])
    for entrance, distribution in durations.items():
        family.add_metric([entrance], _cumulated(distribution), distribution.sum_seconds)
    return family


def _cumulated(distribution: Distribution) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for label, count in zip(_BUCKET_LABELS, distribution.counts, strict=True):
        total += count
        buckets.append((label, float(total)))
    return buckets


def _node_metrics(nodes: Iterable[NodeSample]) -> Iterator[Metric]:
    up = GaugeMetricFamily(f"{_PREFIX}node_up", "Whether a request reaches the node now.", labels=["node"])
    round_trip = GaugeMetricFamily(
        f"{_PREFIX}node_round_trip_seconds", "The last measured round trip.", labels=["node"]
    )
    streams = GaugeMetricFamily(f"{_PREFIX}node_streams", "Streams open to the node.", labels=["node"])
    received = CounterMetricFamily(f"{_PREFIX}node_bytes_in", "Bytes from the node.", labels=["node"])
    sent = CounterMetricFamily(f"{_PREFIX}node_bytes_out", "Bytes to the node.", labels=["node"])
    for sample in nodes:
        label = [sample.node]
        up.add_metric(label, sample.detached_seconds is None)
        if sample.round_trip_seconds is not None:
            round_trip.add_metric(label, sample.round_trip_seconds)
        streams.add_metric(label, sample.streams)
        received.add_metric(label, sample.bytes_in)
        sent.add_metric(label, sample.bytes_out)
    yield from (up, round_trip, streams, received, sent)
