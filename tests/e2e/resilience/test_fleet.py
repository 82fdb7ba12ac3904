"""A whole fleet loses its link at one moment, with a thousand streams open. All of it recovers."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.systems.qanat import issue
from certs.authority_folder import load_authority
from tests.support.net.emulated import Emulated
from tests.support.processes.programs import AGENTS_PORT
from tests.support.processes.site import Site
from tunnel_core.identity import Role

NODES, STREAMS_OF_EACH = 200, 5
CUT_SECONDS = 10
# 200 handshakes keep a small machine busy, as all the agents are on it too.
LAST_SECONDS = 20
WORD = b"still there?"


@pytest.fixture
def fleet(site: Site, tmp_path: Path) -> Iterator[list[str]]:
    """Its nodes, attached from the edge. Each target is an echo."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    names = [f"light-{number}" for number in range(NODES)]
    authority = load_authority(site.server.data_dir / "ca")
    for name in names:
        issue(authority, Role.NODE, name, folder / f"{name}.pem")
    server = f"{site.network.cloud_address}:{AGENTS_PORT}"
    argv = site.agent.namespace.argv([sys.executable, "-m", "bench.attachers", str(folder), server])
    with (tmp_path / "fleet.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log)  # noqa: S603 - our own
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 60)[0], (tmp_path / "fleet.log").read_text()
        assert json.loads(process.stdout.readline()) == NODES
        yield names
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_all_sessions_resume(
    site: Site, net: Emulated, fleet: list[str], record_property: Callable[[str, object], None]
) -> None:
    resumed = _resumptions(site)
    users = [_opened(site, name) for name in fleet for _ in range(STREAMS_OF_EACH)]
    back = net.cut_for(CUT_SECONDS)
    net.flush_nat()  # otherwise most connections outlive the cut
    for user in users:
        user.sendall(WORD)
    for user in users:
        user.settimeout(max(0.1, back + LAST_SECONDS - time.monotonic()))
        assert user.recv(1024) == WORD
    took = time.monotonic() - back
    assert _resumptions(site) - resumed >= NODES
    record_property("seconds_to_the_last", round(took, 1))


def _opened(site: Site, node: str) -> socket.socket:
    """A stream that has echoed once."""
    answer = site.server.connect(f"{node}:7")
    assert answer.status == 200, f"{answer.status} {answer.phrase}"
    assert answer.echoes(b"before")
    return answer.socket


def _resumptions(site: Site) -> float:
    return site.server.metrics().get('qanat_attaches_total{outcome="resumed"}', 0.0)
