"""The network between edge and cloud fails: NAT drops its state, packets are lost, a second agent appears."""

from __future__ import annotations

import time

import pytest

from tests.support.processes.programs import Agent
from tests.support.processes.site import ECHO, GREET, Site, targets
from tests.support.processes.waiting import wait_until


def test_the_nat_forgets_its_flows(unharmed: Site) -> None:
    with unharmed.server.connect(f"edge1:{ECHO}") as answer:
        assert answer.echoes(b"before")
        unharmed.network.forget_flows(1)
        # Found by the pings of either side, then a new connection from the edge.
        unharmed.wait_request(deadline_seconds=12)
        assert answer.echoes(b"after")
    unharmed.check_request()


def test_the_way_is_cut_and_comes_back(unharmed: Site) -> None:
    unharmed.network.cut(1)
    try:
        wait_until(
            lambda: unharmed.agent.get("/readyz")[0] == 503, "the agent to notice", deadline_seconds=10
        )
        refused = wait_until(lambda: _refusal(unharmed), "the server to notice", deadline_seconds=10)
        assert "edge1" in refused
    finally:
        unharmed.network.mend(1)
    unharmed.wait_request(deadline_seconds=12)


def _refusal(site: Site) -> str:
    with site.server.connect(f"edge1:{ECHO}", timeout_seconds=5) as answer:
        return answer.phrase if answer.status == 503 else ""


def test_the_other_edge_notices_nothing(unharmed: Site) -> None:
    """Both edges have the same addresses; a fault of one must not affect the other."""
    before = unharmed.agents["edge2"].metric("qanat_session_ends_total")
    unharmed.network.cut(1)
    try:
        wait_until(lambda: _refusal(unharmed), "the server to notice", deadline_seconds=10)
    finally:
        unharmed.network.mend(1)
    assert unharmed.agents["edge2"].get("/readyz")[0] == 200
    assert unharmed.agents["edge2"].metric("qanat_session_ends_total") == before


@pytest.fixture
def twin(unharmed: Site) -> Agent:
    """A second agent with edge1's identity, in the other edge: a cloned disk."""
    original, site = unharmed.agent, unharmed
    clone = Agent("edge1", site.folder / "twin", site.network.edge(2))
    clone.bundle.write_bytes(original.bundle.read_bytes())
    clone.bundle.chmod(0o600)
    clone.configure(
        site.server,
        allow=[f"localhost:{ECHO}-{GREET}"],
        session={"retry_max_seconds": 4},
        ops={"listen": "127.0.0.1:7105"},
    )
    clone.move_ops(7105)
    return clone


def test_a_second_agent_with_the_same_identity(unharmed: Site, twin: Agent) -> None:
    """The newest wins at once, requests continue, and the two do not evict each other all the time."""
    elsewhere = targets("twin-targets", unharmed.network.edge(2), unharmed.folder)
    elsewhere.start()
    try:
        elsewhere.wait_log("ready")
        twin.process.start()
        unharmed.agent.process.wait_log("another agent runs as edge1", deadline_seconds=15)
        for _ in range(20):
            unharmed.wait_request(deadline_seconds=3)
            time.sleep(0.2)  # the time in which they could fight
        fights = unharmed.agent.process.log_text().count("another agent runs as edge1")
        assert fights <= 4, f"evicted {fights} times in 4 s"
    finally:
        twin.process.kill()
        elsewhere.kill()
    # The first one, which saw that two are alive, got a time to retry in a minute.
    unharmed.wait_request(deadline_seconds=90)
