"""A program that runs out of descriptors logs that, keeps its streams, and recovers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.processes.site import ECHO, SILENT, Site
from tests.support.processes.waiting import wait_until

SPARE = 12


@pytest.fixture
def starved(unharmed: Site, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The program named by the parameter may have only a few descriptors more than it has at rest."""
    program = unharmed.server if request.param == "server" else unharmed.agent
    few = program.process.descriptors + SPARE
    program.process.kill()
    program.limit_descriptors(few)
    program.start()
    unharmed.recover()
    yield unharmed
    program.process.kill()
    program.limit_descriptors(None)


@pytest.mark.parametrize("starved", ["server"], indirect=True)
def test_the_server_has_no_descriptors_left(starved: Site) -> None:
    kept = starved.server.connect(f"edge1:{ECHO}")
    crowd = [starved.server.dial_unix(starved.server.connect_socket) for _ in range(SPARE * 3)]
    starved.server.process.wait_log("descriptor")
    assert kept.echoes(b"this stream goes on")
    for connection in crowd:
        connection.close()
    starved.wait_request(deadline_seconds=5)
    assert kept.echoes(b"still")
    kept.socket.close()


@pytest.mark.parametrize("starved", ["agent"], indirect=True)
def test_the_agent_has_no_descriptors_left(starved: Site) -> None:
    kept = starved.server.connect(f"edge1:{ECHO}")
    crowd = [starved.server.connect(f"edge1:{SILENT}") for _ in range(SPARE * 2)]
    refused = [answer for answer in crowd if answer.status != 200]
    assert refused
    assert {answer.status for answer in refused} == {503}
    assert all("edge1" in answer.phrase and "descriptor" in answer.phrase for answer in refused)
    assert kept.echoes(b"this stream goes on")
    for answer in crowd:
        answer.socket.close()
    wait_until(lambda: starved.agent.metric("qanat_streams_open") == 1, "the crowd to be gone")
    starved.check_request()
    kept.socket.close()
