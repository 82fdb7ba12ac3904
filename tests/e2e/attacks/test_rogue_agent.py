"""A stolen certificate of a node or a user at the agents' port: its attacks, and their effect on others."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.attacks.echo import Echo
from tests.e2e.attacks.ground import INNOCENT, Ground
from tests.rogues import agent as rogue
from tests.support.processes.waiting import wait_until
from tunnel_core.names import join_host_port
from tunnel_server.accounting.write_budget import WRITE_SECONDS, WRITES
from tunnel_server.nodes.attach_budget import ATTACH_SECONDS, ATTACHES

CALLS = 120
CALLS_A_SECOND = 40
"""Few, so that the effect is that of the calls, and not the cost of many TLS handshakes."""


@dataclass
class Attack:
    """An attack under way; ``report`` is the rogue's result."""

    process: subprocess.Popen[bytes]
    report: dict[str, Any] = field(default_factory=dict)
    descriptors: int = 0
    """The most that the server had during the attack."""
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    def watch(self, site: Ground) -> None:
        """Watch the server until the rogue has ended."""
        while self.process.poll() is None:
            self.descriptors = max(self.descriptors, site.server.process.descriptors)
            time.sleep(0.05)  # between two checks
        self.seconds = time.monotonic() - self.began


@contextmanager
def attacking(site: Ground, bundle: Path, name: str) -> Iterator[Attack]:
    address = join_host_port(site.address, site.agents_port)
    argv = [sys.executable, "-m", rogue.__name__, str(bundle), address, name]
    argv += ["--calls", str(CALLS), "--per-second", str(CALLS_A_SECOND)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:  # noqa: S603 - ours
        attack = Attack(process)
        try:
            yield attack
            assert process.stdout is not None
            attack.report = json.loads(process.stdout.read())
        finally:
            process.kill()


@pytest.mark.parametrize("who", ["node", "user", "revoked"])
def test_calls_without_a_hello_take_no_place_of_others(site: Ground, echo: Echo, who: str) -> None:
    bundle = site.user_bundle("mallory") if who == "user" else site.node_bundle(f"silent-{who}")
    if who == "revoked":
        site.server.tell("nodes/revoke", name=f"silent-{who}")
    other = site.agents.get("edge2") or site.add_agent("edge2")
    if other.process.running:
        other.process.stop()
    at_rest = site.server.process.descriptors
    with echo.measured() as under, attacking(site, bundle, "silent") as attack:
        other.start()
        attack.watch(site)
    assert attack.report["begun"] == CALLS
    assert attack.descriptors < at_rest + CALLS / 2
    under.require(echo.rest)


def test_a_node_that_takes_itself_over_erases_nothing_of_others(site: Ground, echo: Echo) -> None:
    site.server.token("edge9")
    acts = site.server.audit(kind="token_created")
    events = site.server.ask(f"/api/v1/events?node={INNOCENT}")["events"]
    assert acts
    assert events
    with echo.measured() as under, attacking(site, site.node_bundle("restless"), "takeover") as attack:
        attack.watch(site)
    outcomes = attack.report["outcomes"]
    allowed = ATTACHES + attack.seconds / ATTACH_SECONDS + 1
    assert 1 <= outcomes["welcome"] <= allowed
    assert outcomes["too_many_attaches"] > allowed
    assert attack.report["retry_after_ms"] > 0
    lines = {"kind": "takeover", "node": "restless"}
    wait_until(lambda: site.server.audit(**lines), "the takeovers in the audit")
    assert len(site.server.audit(**lines)) <= 2 * allowed
    assert site.server.audit(kind="token_created") == acts
    assert site.server.ask(f"/api/v1/events?node={INNOCENT}")["events"][: len(events)] == events
    under.require(echo.rest)


def test_agents_that_check_and_leave_write_no_traceback(site: Ground, echo: Echo) -> None:
    since = site.server.process.log_size()
    with echo.measured() as under, attacking(site, site.node_bundle("curious"), "probe") as attack:
        attack.watch(site)
    assert attack.report["outcomes"]["welcome"]
    log = site.server.process.log_text(since)
    assert "Traceback" not in log
    of_curious = [line for line in log.splitlines() if "node curious" in line]
    allowed = WRITES + ATTACHES + 2 * (1 + attack.seconds / WRITE_SECONDS)
    assert 0 < len(of_curious) <= allowed < CALLS
    under.require(echo.rest)


def test_megabytes_where_a_hello_belongs(site: Ground, echo: Echo) -> None:
    with echo.measured() as under, attacking(site, site.node_bundle("large"), "oversize") as attack:
        attack.watch(site)
    assert attack.report["outcomes"] == {rogue.LOST: attack.report["begun"]}
    under.require(echo.rest)
