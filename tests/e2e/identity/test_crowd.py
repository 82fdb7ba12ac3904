"""A whole fleet joins at one moment, and renews at one: no node fails, and other users hardly notice.

The crowd has one processor. The server, an agent, its echo, and the measuring program have the other.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.identity.conftest import ALLOW, HomeMaker
from tests.e2e.identity.talking import Talking, pinned
from tests.support.net.namespaces import Network
from tests.support.processes import tools
from tests.support.processes.programs import AGENTS_PORT, HTTPS_PORT, Server
from tests.support.processes.site import ECHO
from tests.support.processes.waiting import wait_until

COUNT, LONG_COUNT = 300, 2000
JOINED_SECONDS = 120
MOST_P99, LOOSE_P99 = 5, 25
"""Times that of the same pinning idle; machines that others use as well have no good 99th percentile."""
IDLE_SECONDS, LONG_IDLE_SECONDS = 5.0, 20.0
_DEADLINE_SECONDS = 400
RESUMED = 'qanat_attaches_total{outcome="resumed"}'


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """Few at once, so that many get a time to retry."""
    return {"identity": {"max_enrolments": 12}}


@pytest.fixture
def processors() -> tuple[int, int]:
    tools.require("taskset")
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


@pytest.fixture
def crowd(
    server: Server, network: Network, tmp_path: Path, processors: tuple[int, int], long: bool
) -> Iterator[tuple[Talking, int]]:
    count = LONG_COUNT if long else COUNT
    (tmp_path / "crowd").mkdir()
    arguments = [f"{server.address}:{port}" for port in (HTTPS_PORT, AGENTS_PORT)]
    arguments += [server.trust_domain, str(server.trust_file), str(tmp_path / "crowd"), str(count)]
    made = Talking(
        "tests.e2e.identity.crowd",
        *arguments,
        log=tmp_path / "crowd.log",
        namespace=network.edge(2),
        processor=processors[0],
    )
    with made.running():
        assert made.answer(deadline_seconds=60) == {"ready": count}
        yield made, count


def test_all_join_and_renew(
    server: Server,
    network: Network,
    home: HomeMaker,
    crowd: tuple[Talking, int],
    processors: tuple[int, int],
    tmp_path: Path,
    long: bool,
) -> None:
    everybody, count = crowd
    worker = home("worker")
    worker.join(server, server.token("worker"), *ALLOW)
    worker.start()
    for process in (server.process, worker.process):
        pinned(process.pid, processors[1])
    pulse = Talking(
        *("tests.e2e.identity.pulse", str(server.connect_socket), f"worker:{ECHO}"),
        log=tmp_path / "pulse.log",
        namespace=network.cloud,
        processor=processors[1],
    )
    token = server.token("", match="crowd-*", uses=count)
    with pulse.running():
        idle = _pulse_for(pulse, LONG_IDLE_SECONDS if long else IDLE_SECONDS)
        joined = everybody.ask(f"enrol {token}", deadline_seconds=_DEADLINE_SECONDS)
        beside = pulse.ask("", deadline_seconds=30)
        resumed = server.metrics().get(RESUMED, 0)
        renewed = everybody.ask("renew", deadline_seconds=_DEADLINE_SECONDS)
        beside_renewals = pulse.ask("", deadline_seconds=30)
        wait_until(
            lambda: server.metrics().get(RESUMED, 0) - resumed >= count,
            "all sessions on carriers that show the new certificates",
            deadline_seconds=120,
        )
    figures = {"joined": joined, "renewed": renewed, "idle": idle, "beside": beside}
    figures["beside_renewals"] = beside_renewals
    sys.stdout.write(json.dumps(figures) + "\n")
    assert joined["attached"] == renewed["attached"] == count, figures
    assert server.ask("/api/v1/admin/tokens")["tokens"][-1]["used"] == count
    assert joined["refusals"].get("too_many_enrolments", 0) > 0, figures
    assert set(joined["refusals"]) | set(renewed["refusals"]) == {"too_many_enrolments"}, figures
    assert joined["seconds"] <= JOINED_SECONDS, figures
    most = MOST_P99 if long else LOOSE_P99
    for busy in (beside, beside_renewals):
        assert busy["p99"] <= most * idle["p99"], figures


def _pulse_for(pulse: Talking, seconds: float) -> dict[str, Any]:
    pulse.ask("", deadline_seconds=30)  # what was before does not count
    time.sleep(seconds)
    return pulse.ask("", deadline_seconds=30)
