from __future__ import annotations

import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

from tunnel_core.reasons import Reason
from tunnel_core.telemetry import prometheus as metrics
from tunnel_core.telemetry.counters import CapSample, Counters, NodeSample
from tunnel_core.version import form


def series_of(counters: Counters, nodes: tuple[NodeSample, ...] = ()) -> dict[str, float]:
    """Every ``qanat_`` series of the page, as ``name{label,label}``."""
    snapshot = counters.snapshot(sessions=2, nodes=nodes, software="qanat/1")
    page = metrics.exposition(snapshot, tasks=7).decode()
    assert "qanat_tasks 7.0" in page
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return {
        f"{sample.name}{{{','.join(sample.labels.values())}}}": sample.value
        for sample in samples
        if sample.name.startswith("qanat_")
    }


def test_an_idle_process_shows_what_it_is() -> None:
    series = series_of(Counters())
    assert series[f"qanat_build_info{{{form()},qanat/1}}"] == 1
    assert series["qanat_sessions{}"] == 2


def test_streams_are_counted_from_open_to_close() -> None:
    counters = Counters()
    for _ in range(3):
        counters.stream_opened("connect")
    counters.stream_closed("connect", Reason.DONE, bytes_to_target=5, bytes_to_user=7)
    counters.stream_closed("connect", Reason.SESSION_LOST, bytes_to_user=1)
    series = series_of(counters)
    assert series["qanat_streams_open{connect}"] == 1
    assert series["qanat_streams_total{connect,done}"] == 1
    assert series["qanat_streams_total{connect,session_lost}"] == 1
    assert series["qanat_stream_bytes_total{to_target,connect}"] == 5
    assert series["qanat_stream_bytes_total{to_user,connect}"] == 8


def test_refusals_attaches_and_ends_are_counted_by_reason() -> None:
    counters = Counters()
    counters.refused("web", Reason.UNKNOWN_NODE)
    counters.refused_unauthenticated("agents", Reason.HANDSHAKE_FAILED)
    counters.attached()
    counters.attached(Reason.WRONG_ROLE)
    counters.session_ended(Reason.TAKEN_OVER)
    series = series_of(counters)
    assert series["qanat_refusals_total{web,unknown_node}"] == 1
    assert series["qanat_unauthenticated_refusals_total{agents,handshake_failed}"] == 1
    assert series["qanat_attaches_total{ok}"] == 1
    assert series["qanat_attaches_total{wrong_role}"] == 1
    assert series["qanat_session_ends_total{taken_over}"] == 1


def test_node_events_are_counted_by_kind() -> None:
    counters = Counters()
    counters.node_event("lost")
    counters.node_event("lost")
    counters.node_event("resumed")
    series = series_of(counters)
    assert series["qanat_node_events_total{lost}"] == 2
    assert series["qanat_node_events_total{resumed}"] == 1


def test_a_cap_and_its_cost_are_shown_where_there_is_one() -> None:
    assert not any("cap" in name for name in series_of(Counters()))
    snapshot = Counters().snapshot(sessions=0, cap=CapSample(250_000, 1.5, 4096))
    page = metrics.exposition(snapshot).decode()
    assert "qanat_link_cap_bytes_per_second 250000.0" in page
    assert "qanat_link_cap_delayed_seconds_total 1.5" in page
    assert "qanat_link_cap_delayed_bytes_total 4096.0" in page


def test_durations_fall_into_buckets_up_to_their_bound() -> None:
    counters = Counters()
    for seconds in (0.001, 0.003, 100.0):
        counters.dialled("tcp", seconds)
        counters.first_byte("tcp", seconds)
    series = series_of(counters)
    for name in ("qanat_dial_seconds", "qanat_first_byte_seconds"):
        assert series[f"{name}_bucket{{tcp,0.001}}"] == 1
        assert series[f"{name}_bucket{{tcp,0.005}}"] == 2
        assert series[f"{name}_bucket{{tcp,30.0}}"] == 2
        assert series[f"{name}_bucket{{tcp,+Inf}}"] == 3
        assert series[f"{name}_count{{tcp}}"] == 3
        assert series[f"{name}_sum{{tcp}}"] == 100.004


def test_an_unknown_entrance_of_a_peer_makes_no_new_label() -> None:
    counters = Counters()
    for number in range(100):
        counters.stream_opened(f"made-up-{number}")
        counters.dialled(f"made-up-{number}", 1)
    assert series_of(counters)["qanat_streams_open{other}"] == 100
    assert set(counters.dials) == {"other"}


def test_a_node_has_five_series_at_most() -> None:
    node = NodeSample("edge-1", None, 0.05, streams=2, bytes_in=10, bytes_out=20)
    series = {key: value for key, value in series_of(Counters(), (node,)).items() if "edge-1" in key}
    assert series == {
        "qanat_node_up{edge-1}": 1,
        "qanat_node_round_trip_seconds{edge-1}": 0.05,
        "qanat_node_streams{edge-1}": 2,
        "qanat_node_bytes_in_total{edge-1}": 10,
        "qanat_node_bytes_out_total{edge-1}": 20,
    }


def test_a_detached_node_keeps_its_series_for_an_hour() -> None:
    nodes = (NodeSample("lately", 3599.0), NodeSample("long-ago", 3600.0))
    series = series_of(Counters(), nodes)
    assert series["qanat_node_up{lately}"] == 0
    assert not [key for key in series if "long-ago" in key]


def test_a_snapshot_does_not_change() -> None:
    counters = Counters()
    counters.dialled("tcp", 1)
    snapshot = counters.snapshot(sessions=0)
    counters.dialled("tcp", 1)
    counters.attached()
    assert sum(snapshot.counters.dials["tcp"].counts) == 1
    assert not snapshot.counters.attaches


def test_process_figures_are_shown() -> None:
    page = metrics.exposition(Counters().snapshot(sessions=0))
    assert b"process_resident_memory_bytes " in page
    assert b"process_open_fds " in page


def test_counting_and_listening_do_not_load_the_metrics_library() -> None:
    lines = (
        "import sys, tunnel_core.telemetry.ops_server, tunnel_core.telemetry.counters",
        "sys.exit('prometheus_client' in sys.modules)",
    )
    code = "; ".join(lines)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603
