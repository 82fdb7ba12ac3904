"""The life of a fleet in minutes: certificates of one minute, a new root, server restarts and kills.

Streams to every node run all along, and each ends only with the server that carries it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.identity.conftest import ALLOW
from tests.e2e.identity.homes import Home
from tests.e2e.identity.pulses import Pulses
from tests.support.net.namespaces import Network
from tests.support.processes.programs import HTTPS_PORT, Server
from tests.support.processes.site import ECHO
from tests.support.processes.waiting import wait_until

LIFE_SECONDS = 60
REAL, LIGHT = 6, 44
"""Agents as processes of their own, and those that share one: a process costs 50 MB."""
ALL_BACK_SECONDS = 60
SECONDS, LONG_SECONDS = 180, 600
ROTATION_SECONDS = 150
"""Some more than one takes, with the two deaths in it."""
RENEWED_SECONDS = LIFE_SECONDS * 2
_ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return {"identity": {"node_life_seconds": LIFE_SECONDS}, "log": {"level": "info"}}


@pytest.fixture
def fleet(server: Server, network: Network, tmp_path: Path) -> Iterator[list[str]]:
    """The names of all nodes, attached."""
    real = [
        Home(f"real-{n}", tmp_path / f"real-{n}", network.edge(1), ops_port=7100 + n) for n in range(REAL)
    ]
    light = [f"light-{n}" for n in range(LIGHT)]
    village = _village(server, network, tmp_path, light)
    try:
        for one in real:
            one.join(server, server.token(one.node), *ALLOW)
            one.config_file.write_text(one.config_file.read_text() + "\n[session]\nretry_max_seconds = 2\n")
            one.process.start()
        assert village.stdout and village.stdout.readline() == "joined\n", (
            tmp_path / "village.log"
        ).read_text()
        names = [*(one.node for one in real), *light]
        _wait_all_attached(server, names)
        yield names
        assert village.poll() is None, (tmp_path / "village.log").read_text()[-2000:]
        assert all(one.process.running for one in real)
    finally:
        village.kill()
        village.communicate()
        for one in real:
            one.process.kill()


def _village(server: Server, network: Network, folder: Path, names: list[str]) -> subprocess.Popen[str]:
    where = [f"{server.address}:{HTTPS_PORT}", f"localhost:{ECHO}", str(folder)]
    argv = [sys.executable, "-m", "tests.e2e.identity.village", *where, *names]
    with (folder / "village.log").open("wb") as log:
        village = subprocess.Popen(  # noqa: S603 - our own command
            network.edge(1).argv(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=_ROOT,
        )
    assert village.stdin
    village.stdin.write(server.token("", match="light-*", uses=len(names)) + "\n")
    village.stdin.flush()
    return village


def _wait_all_attached(server: Server, names: list[str]) -> None:
    def attached() -> bool:
        found = server.ask("/api/v1/nodes")["nodes"]
        return {one["name"] for one in found if one["state"] == "attached"} >= set(names)

    wait_until(attached, "all nodes to be attached", deadline_seconds=ALL_BACK_SECONDS)


def test_no_stream_notices(server: Server, fleet: list[str], long: bool) -> None:
    began, deaths, rotations = time.monotonic(), 0, 0
    ends = began + (LONG_SECONDS if long else SECONDS)
    pulses = Pulses(server, fleet)
    while not rotations or time.monotonic() + ROTATION_SECONDS < ends:
        with pulses.beating():
            _step(server, "add", pulses)
            _issue_operator_anew(server)
            _wait_ready_for(server, "switch", pulses)
        _die(server, fleet, kill=rotations % 2 == 0)
        with pulses.beating():
            _step(server, "switch", pulses)
            _issue_operator_anew(server)
            _wait_ready_for(server, "retire", pulses)
            _step(server, "retire", pulses)
            _wait_renewed(server, fleet, pulses)
        _die(server, fleet, kill=rotations % 2 == 1)
        rotations, deaths = rotations + 1, deaths + 2
    with pulses.beating():
        while time.monotonic() < ends:
            _looked_at(server, "ca", pulses)
    cut_off = [line for line in server.audit(most=1000) if line["kind"] == "ended"]
    assert cut_off == [], "nobody's certificate ended under him, and nobody was cut off"
    figures = {
        "seconds": round(time.monotonic() - began),
        "rotations": rotations,
        "deaths": deaths,
        "echoes": pulses.echoes,
        "slowest_round_seconds": round(pulses.slowest, 2),
        "renewals": len(server.audit(kind="renewed", most=1000)),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def _step(server: Server, step: str, pulses: Pulses) -> None:
    server.tell("ca/rotate", step=step)
    pulses.check()


def _issue_operator_anew(server: Server) -> None:
    """Issue the bundle made by hand again, because it is not renewed, and revoke the old one."""
    issued = server.ask("/api/v1/admin/certificates?role=user")["certificates"]
    old = [one for one in issued if not one.get("revoked")]
    server.user_bundle.unlink(missing_ok=True)
    server.issue_user("operator", server.user_bundle)
    for one in old:
        server.tell("certificates/revoke", serial=one["serial"])


def _wait_ready_for(server: Server, step: str, pulses: Pulses) -> None:
    """Wait until ``ca show`` reports that a step would end no access."""
    shown: dict[str, Any] = {}

    def ready() -> bool:
        shown.update(_looked_at(server, "ca", pulses))
        return shown["next"] == step and not shown["next_cuts_off"] and not shown["unknown_before"]

    try:
        wait_until(ready, f"nobody to be cut off by {step}", deadline_seconds=RENEWED_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{error}: {shown}") from None


def _wait_renewed(server: Server, names: list[str], pulses: Pulses) -> None:
    """Wait until each agent has renewed once more, which needs the new root that the server sent."""
    last = _last_renewals(server, pulses)

    def renewed() -> bool:
        now = _last_renewals(server, pulses)
        return all(now.get(name, 0) > last.get(name, 0) for name in names)

    wait_until(renewed, "each node to renew", deadline_seconds=RENEWED_SECONDS)


def _last_renewals(server: Server, pulses: Pulses) -> dict[str, int]:
    """The number of the line of the audit, by node."""
    lines = _looked_at(server, "audit?kind=renewed&most=1000", pulses)["audit"]
    return {line["node"]: line["number"] for line in lines}


def _looked_at(server: Server, what: str, pulses: Pulses) -> dict[str, Any]:
    """Send an administrator's request now and then, while no stream may break."""
    time.sleep(1)
    pulses.check()
    answer: dict[str, Any] = server.ask(f"/api/v1/admin/{what}")
    return answer


def _die(server: Server, names: list[str], *, kill: bool) -> None:
    """Stop or kill the server, start it again, and wait for all nodes."""
    if kill:
        server.process.kill()
        server.start()
    else:
        server.restart()
    _wait_all_attached(server, names)
