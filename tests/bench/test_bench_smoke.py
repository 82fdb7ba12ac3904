"""The load generator against direct targets: it counts what was moved, and it has head-room."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from click.testing import CliRunner

from bench import link
from bench.__main__ import main
from bench.delay import maybe_delayed
from bench.exchanges import count_exchanges
from bench.figures import FAMILIES, FIGURES
from bench.gets import getting
from bench.keystrokes import echoes, opened, sink
from bench.load import (
    MIB,
    Dial,
    LoadError,
    connect_rate,
    connect_seconds,
    dialler,
    download_rate,
    echo_rate,
    echo_seconds,
    idle_streams,
    stalled_streams,
    upload_rate,
)
from bench.plan import QUICK, WHOLE, Plan
from bench.processes import BenchError, module
from bench.report import Report, lines
from bench.rounds import Row, alternate, ratio
from bench.rows import after_work
from bench.systems import grpc_baseline, ssh
from bench.systems.qanat import Product
from bench.systems.system import System, on_loopback
from bench.thin_link import LOADS, Line, type_beside
from bench.usage import cpu_seconds, resident_bytes
from bench.world import World


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, int]]:
    log = tmp_path_factory.mktemp("bench") / "target.log"
    with module("bench.target", log=log) as (_, found):
        yield found


@pytest.fixture(scope="module")
def to(ports: Mapping[str, int]) -> Mapping[str, Dial]:
    return on_loopback(ports)


def test_bulk_moves_every_byte(to: Mapping[str, Dial]) -> None:
    assert download_rate(to["source"], 1, 8 * MIB) > 0
    assert download_rate(to["source"], 3, 4 * MIB) > 0
    assert upload_rate(to["sink"], 8 * MIB + 17) > 0


def test_echoes_are_timed_one_by_one_and_counted_together(to: Mapping[str, Dial]) -> None:
    times = echo_seconds(to["echo"], 50)
    assert len(times) == 50 and min(times) > 0
    assert echo_rate(to["echo"], 8, 0.05) > 1000


def test_new_connections_are_timed_and_counted(to: Mapping[str, Dial]) -> None:
    assert len(connect_seconds(to["echo"], 10)) == 10
    assert connect_rate(to["echo"], 8, 0.05) > 100


def test_small_gets_are_counted(to: Mapping[str, Dial]) -> None:
    with getting(to["page"], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 4) as run:
        assert run(0.1) > 100
    with to["page"]() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := sock.recv(4096):
            answer += piece
    assert answer.endswith(b"</html>\n")


def test_connections_can_stand_idle_or_stalled(to: Mapping[str, Dial]) -> None:
    with idle_streams(to["echo"], 5), stalled_streams(to["source"], 5, read_first=2 * MIB):
        assert echo_seconds(to["echo"], 1)


def test_the_delaying_relay_holds_bytes_back_and_keeps_the_rate(
    ports: Mapping[str, int], tmp_path: Path
) -> None:
    with maybe_delayed(ports["echo"], 0.01, tmp_path / "log") as port:
        assert 0.02 <= statistics.median(echo_seconds(dialler("127.0.0.1", port), 5)) < 0.06
    with maybe_delayed(ports["source"], 0.01, tmp_path / "log") as port:
        assert download_rate(dialler("127.0.0.1", port), 1, 16 * MIB) > 20


def test_the_grpc_baseline_carries_all_three_kinds(ports: Mapping[str, int], tmp_path: Path) -> None:
    with grpc_baseline.running(ports, tmp_path / "grpc") as system:
        assert download_rate(system.to["source"], 2, 2 * MIB) > 0
        assert upload_rate(system.to["sink"], 3 * MIB + 1) > 0
        assert len(echo_seconds(system.to["echo"], 5)) == 5


def test_a_program_that_does_not_start_is_reported_with_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(BenchError, match=r"No module named bench\.nothing"),
        module("bench.nothing", log=tmp_path / "log"),
    ):
        pytest.fail("it started")


def test_usage_of_this_process_is_found() -> None:
    assert resident_bytes([os.getpid()]) > MIB
    assert cpu_seconds([os.getpid()]) > 0


def test_rounds_alternate_and_ratios_are_taken_round_by_round() -> None:
    order: list[str] = []
    values = iter([2.0, 1.0, 20.0, 10.0, 9.0, 3.0])

    def measure(system: System) -> float:
        order.append(system.name)
        return next(values)

    samples = alternate([System("a", {}), System("b", {})], 3, measure)
    assert order == ["a", "b"] * 3
    assert ratio(samples, "a", "b") == 2.0


def test_keys_are_timed_beside_bulk_whose_share_is_taken(to: Mapping[str, Dial]) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with sink(listener) as arrived:
        doors = {**to, "sink": dialler("127.0.0.1", listener.getsockname()[1])}
        found = type_beside(doors, arrived, LOADS["all"], Line(1000, 0.01), 0.5)
    assert -0.02 < found.extra_seconds < 1
    assert found.shares.keys() == {"download", "upload"}
    assert all(share > 1 for share in found.shares.values()), "loopback is no thin link"


def test_an_open_echo_goes_on_until_it_is_closed(to: Mapping[str, Dial]) -> None:
    with opened(to["echo"], 2) as socks, echoes(socks, 0.01) as meter:
        end = time.monotonic() + 5
        while meter.bytes < 10 * 64:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_exchanges_are_counted_from_the_end_of_one_to_the_end_of_another() -> None:
    start = time.monotonic()
    ended = threading.Event()

    def carried() -> int:
        """Two packets of 50 bytes every half second, 0.02 s apart."""
        beats, rest = divmod(time.monotonic() - start + 0.3, 0.5)
        return 100 * int(beats) + (50 if rest > 0.48 else 0)

    count = count_exchanges(carried, 1.9, ended, pause_seconds=0.2)
    assert count.bytes == 100 * round(count.seconds / 0.5) > 0
    ended.set()
    with pytest.raises(LoadError, match="a count needs two"):
        count_exchanges(carried, 60, ended, pause_seconds=0.2)


@pytest.mark.parametrize("family", ["idle_link", "keystrokes", "black_hole"])
@pytest.mark.parametrize("plan", [WHOLE, QUICK], ids=["whole", "quick"])
def test_rows_of_a_link_are_skipped_by_name_where_there_is_none(
    family: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "may_build", lambda: False)
    world = World(plan, tmp_path, {}, contextlib.ExitStack())
    assert not list(importlib.import_module(f"bench.rows.{family}").measure(world))
    assert world.skipped == dict.fromkeys(FAMILIES[family], "needs root, for network namespaces")


@pytest.mark.parametrize("whole", [True, False])
def test_memory_after_work_is_measured_beyond_the_start(
    whole: bool, to: Mapping[str, Dial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = dataclasses.replace(
        QUICK, whole=whole, work_connections=8, work_mib=16, quiet_seconds=0, rate_seconds=0.05
    )
    direct = Product("qanat", to, (os.getpid(),), (os.getpid(),))
    monkeypatch.setattr(World, "fresh_product", lambda _: contextlib.nullcontext(direct))
    rows = list(after_work.measure(World(plan, tmp_path, {}, contextlib.ExitStack())))
    assert [row.key for row in rows] == list(FAMILIES["after_work"])
    for row in rows:
        start, quiet = row.samples["start"][0], row.samples["quiet"][0]
        assert start > 1 and row.value == pytest.approx(quiet - start)
        assert "16 MiB each way" in row.note and ("less than" in row.note) is not whole


@pytest.mark.parametrize("failing", ["ssh", "grpc"])
def test_a_baseline_that_does_not_start_leaves_out_only_its_own_columns(
    failing: str, ports: Mapping[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Path] = []

    def fail(_: Mapping[str, int], folder: Path) -> NoReturn:
        tries.append(folder)
        raise BenchError(
            "not reached: sshd listens; the log ends:\nPrivilege separation user sshd is missing"
        )

    def works(name: str) -> Callable[..., contextlib.AbstractContextManager[System]]:
        return lambda targets, _: contextlib.nullcontext(System(name, on_loopback(targets)))

    monkeypatch.setattr(ssh, "missing", lambda: "")
    for name, baseline in (("ssh", ssh), ("grpc", grpc_baseline)):
        monkeypatch.setattr(baseline, "running", fail if name == failing else works(name))
    monkeypatch.setattr(World, "product", lambda _: System("qanat", on_loopback(ports)))
    with contextlib.ExitStack() as stack:
        world = World(replace(QUICK, connects=3, rate_seconds=0.05), tmp_path, ports, stack)
        rows = list(importlib.import_module("bench.rows.connections").measure(world))
        assert world.no_ssh() == (failing == "ssh") and len(tries) == 1
    left = {
        "ssh": [("connect_p50_vs_grpc", ""), ("connects_vs_grpc", "")],
        "grpc": [("connect_p50", "vs_ssh"), ("connects", "vs_ssh")],
    }
    direct = [("connect_p50", "direct"), ("connects", "direct")]
    assert sorted((row.key, row.inside) for row in rows) == sorted([*left[failing], *direct])
    [(key, reason)] = world.skipped.items()
    assert key == f"vs_{failing}" and "user sshd is missing" in reason and "\n" not in reason


def test_every_figure_belongs_to_a_family() -> None:
    assert sorted(FIGURES) == sorted(key for keys in FAMILIES.values() for key in keys)


def test_a_report_marks_what_it_reaches_and_what_it_misses() -> None:
    rows = [
        Row("download_vs_grpc", 1.3, "MiB/s", {"qanat": [130.0], "grpc": [100.0]}),
        Row("echo_p50_vs_grpc", 1.3),
        Row("stream_kib", 64.0),
        Row("echo_p50", 1.3, inside="vs_ssh"),
    ]
    report = Report(True, rows)
    table = "\n".join(lines(report))
    for word in ("goal", "ok", "MISSED", "behind"):
        assert word in table
    found = json.loads(json.dumps(report.as_json()))
    assert found["download_vs_grpc"] == 1.3 and found["vs_ssh"] == {"echo_p50": 1.3}
    assert found["missed_floors"] == ["stream_kib"]


def test_an_unknown_row_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["nothing"])
    assert result.exit_code == 2 and "download_vs_grpc" in result.output
