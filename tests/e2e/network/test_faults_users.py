"""Users who leave, who never read, and targets that never answer."""

from __future__ import annotations

import time

import pytest

from tests.support.net import clients
from tests.support.processes.site import ECHO, FLOOD, GREET, SILENT, Site
from tests.support.processes.targets import GREETING
from tests.support.processes.waiting import wait_until

# TEST-NET-1: no host has it, and the edge drops what is sent there.
NOWHERE = "192.0.2.7"
MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def patient_agent(site: Site) -> None:
    """Run an agent whose dials may take long, so that the test sees what ends them early."""
    site.network.swallow(1, NOWHERE)
    allow = [f"localhost:{ECHO}-{GREET}", f"{NOWHERE}:80"]
    site.agent.configure(site.server, allow=allow, dial_timeout_seconds=5, session={"retry_max_seconds": 2})
    site.agent.restart()


def _connect_nowhere(site: Site) -> clients.Answer:
    connection = site.server.dial_unix(site.server.connect_socket)
    connection.sendall(f"CONNECT edge1:80 HTTP/1.1\r\nHost: x\r\nQanat-Target: {NOWHERE}:80\r\n\r\n".encode())
    return clients.Answer(0, "", connection)


def _dials_under_way(site: Site) -> int:
    return site.agent.namespace_sockets("syn-sent")


def test_a_user_leaves_during_the_dial(unharmed: Site) -> None:
    answers = [_connect_nowhere(unharmed) for _ in range(10)]
    wait_until(lambda: _dials_under_way(unharmed) == 10, "the dials")
    # A close without a reset looks like the end of input (`nc -N`), so only a reset is detected.
    for answer in answers:
        answer.abort()
    # Well before the dials' own deadline.
    wait_until(lambda: _dials_under_way(unharmed) == 0, "the dials to end", deadline_seconds=2)


def test_a_target_that_never_answers_the_dial(unharmed: Site) -> None:
    before = time.monotonic()
    with _connect_nowhere(unharmed) as pending:
        unharmed.check_request()
        refused = clients.read_answer(pending.socket)
    assert refused.status == 504
    assert "edge1" in refused.phrase
    assert NOWHERE in refused.phrase
    assert 4 < time.monotonic() - before < 8


def test_a_target_that_never_sends_a_byte(unharmed: Site) -> None:
    """This is no fault: the stream stays until the user leaves, and then the target's side ends too."""
    with unharmed.server.connect(f"edge1:{SILENT}") as answer:
        answer.socket.sendall(b"is anybody there?")
        answer.socket.settimeout(1.5)
        with pytest.raises(TimeoutError):
            answer.socket.recv(1)
        unharmed.check_request()
    unharmed.wait_settled(deadline_seconds=3)


def test_a_target_that_sends_first(unharmed: Site) -> None:
    with unharmed.server.connect(f"edge1:{GREET}") as answer:
        assert clients.receive_exactly(answer.socket, len(GREETING)) == GREETING


def test_200_streams_whose_users_never_read(unharmed: Site, long: bool) -> None:
    resting = {program.name: program.process.resident_bytes for program in unharmed.programs}
    stalled = [unharmed.server.connect(f"edge1:{FLOOD}") for _ in range(400 if long else 200)]
    assert all(answer.status == 200 for answer in stalled)
    wait_until(lambda: _stands_still(unharmed), "every stalled stream to fill up", deadline_seconds=20)
    seconds = _echo_seconds(unharmed)
    assert seconds < 0.5, f"an echo beside them takes {seconds:.2f} s"
    granted = max(program.metric("qanat_credit_granted_bytes") for program in unharmed.programs) / MIB
    for program in unharmed.programs:
        grown = (program.process.resident_bytes - resting[program.name]) / MIB
        # A sender may hold one large read that the credit cut in two; bench/ has the exact ratio.
        assert grown < 2 * granted + len(stalled) / 2, (
            f"{program.name} grew by {grown:.0f} MiB, {granted:.0f} were granted"
        )
    for answer in stalled:
        answer.abort()


def _stands_still(site: Site) -> bool:
    before = site.agent.process.cpu_seconds()
    time.sleep(0.5)
    return site.agent.process.cpu_seconds() - before < 0.1


def _echo_seconds(site: Site) -> float:
    """The worst of 20 echoes."""
    with site.server.connect(f"edge1:{ECHO}") as answer:
        worst = 0.0
        for _ in range(20):
            before = time.monotonic()
            assert answer.echoes(b"x" * 64)
            worst = max(worst, time.monotonic() - before)
        return worst


def test_users_that_leave_in_the_middle_of_a_flood(unharmed: Site, long: bool) -> None:
    for _ in range(200 if long else 30):
        with unharmed.server.connect(f"edge1:{FLOOD}") as answer:
            clients.receive_exactly(answer.socket, 200_000)
            answer.abort()
