"""Floods of HTTP/2 frames, and silent connections, at the agents' port."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.attacks.echo import Echo
from tests.e2e.attacks.ground import Ground
from tests.rogues import http2
from tests.support.processes.waiting import wait_until

SECONDS = 1.5
FLOODS = [
    *("ping", "settings", "rapid_reset", "late_reset", "window_update", "continuation", "big_continuation"),
    *("empty_data", "empty_messages", "priority"),
]


def _flood(site: Ground, identity: Path, kind: str, *options: str) -> dict[str, int]:
    """Keep four connections, and dial each again when the server ends it."""
    address = f"{site.address}:{site.agents_port}"
    argv = [sys.executable, "-m", http2.__name__, address, str(identity), kind, "--seconds", str(SECONDS)]
    done = subprocess.run(  # noqa: S603 - ours
        [*argv, *options], check=True, stdout=subprocess.PIPE, timeout=60
    )
    result: dict[str, int] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_is_cut_and_others_notice_little(site: Ground, echo: Echo, kind: str) -> None:
    identity = site.user_bundle(f"rogue-{kind.replace('_', '-')}")
    with echo.measured() as under:
        # Each kind has a source of its own, because the places of a source that flooded stay taken.
        result = _flood(site, identity, kind, "--source", f"127.77.0.{FLOODS.index(kind) + 1}")
    assert result["ended"] >= 4
    under.require(echo.rest)


def test_a_flood_of_pings_that_reads_the_answers(site: Ground, echo: Echo) -> None:
    with echo.measured() as under:
        result = _flood(site, site.node_bundle("rogue-reader"), "ping", "--read", "--source", "127.77.0.100")
    assert result["ended"] >= 4
    under.require(echo.rest)


def test_silent_connections_keep_no_agent_and_no_administrator_out(site: Ground, echo: Echo) -> None:
    descriptors = Path(f"/proc/{site.server.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    with contextlib.ExitStack() as stack, echo.measured() as under:
        for number in range(1500):
            silent = stack.enter_context(socket.socket())
            silent.bind((f"127.77.1.{number % 8 + 1}", 0))
            silent.setblocking(False)
            silent.connect_ex((site.address, site.agents_port))
        site.add_agent("edge2").start()
        wait_until(lambda: "edge2" in json.dumps(site.server.qanat("nodes")), "edge2 attaches")
        declined = 64
        assert len(list(descriptors.iterdir())) - before < 8 * (32 + 4 * 32) + declined + 20
    under.require(echo.rest)
    wait_until(lambda: len(list(descriptors.iterdir())) < before + 20, "the descriptors are free again")
