"""kill -9 of each program while streams run: each peer learns of it, and the next request works."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.support.net import clients
from tests.support.processes.site import ECHO, FLOOD, SILENT, Site
from tests.support.processes.waiting import wait_until

STREAMS = 5


def _open(site: Site, port: int, count: int = STREAMS) -> list[clients.Answer]:
    answers = [site.server.connect(f"edge1:{port}") for _ in range(count)]
    assert [answer.status for answer in answers] == [200] * count
    return answers


def _ends(answer: clients.Answer, *, deadline_seconds: float) -> bool:
    """Whether the stream ends, by EOF or reset, within the deadline."""
    answer.socket.settimeout(deadline_seconds)
    try:
        return clients.receive_all(answer.socket) is not None
    except TimeoutError:
        return False
    except OSError:
        return True
    finally:
        answer.socket.close()


def _unread(site: Site, port: int) -> int:
    """Bytes that the kernel holds for the targets of ``port`` and they have not read."""
    shown = site.agent.namespace.run("ss", "-Htn", "state", "established", "sport", f"= {port}")
    return sum(int(line.split()[0]) for line in shown.splitlines())


def test_the_server_is_killed(unharmed: Site) -> None:
    answers = _open(unharmed, ECHO)
    unharmed.server.process.kill()
    assert all(_ends(answer, deadline_seconds=2) for answer in answers)
    unready = lambda: unharmed.agent.get("/readyz")[0] == 503  # noqa: E731
    wait_until(unready, "the agent to notice", deadline_seconds=5)
    unharmed.server.start()
    # The agent tries every second or two, and learns that its session is lost.
    unharmed.wait_request(deadline_seconds=8)
    unharmed.agent.wait_idle()


def test_the_agent_is_killed(unharmed: Site) -> None:
    answers = _open(unharmed, ECHO)
    unharmed.agent.process.kill()
    # An open waits three seconds for the link; the streams wait for the whole grace.
    with unharmed.server.connect(f"edge1:{ECHO}", timeout_seconds=6) as refused:
        assert refused.status == 503
        assert "edge1" in refused.phrase
        assert "link lost" in refused.phrase
    unharmed.agent.start()
    unharmed.check_request()
    assert all(_ends(answer, deadline_seconds=3) for answer in answers), "it restarted, so nothing can go on"


def test_the_target_is_killed(unharmed: Site) -> None:
    answers = _open(unharmed, ECHO)
    unharmed.targets.kill()
    assert all(_ends(answer, deadline_seconds=3) for answer in answers)
    with unharmed.server.connect(f"edge1:{ECHO}") as refused:
        assert refused.status == 502
        assert "edge1" in refused.phrase
        assert str(ECHO) in refused.phrase
    unharmed.targets.start()
    unharmed.targets.wait_log("ready")
    unharmed.check_request()


def test_a_killed_target_does_not_look_complete(unharmed: Site) -> None:
    """A flood that is cut off by RST must reach the user as an error, never as a clean end.

    Over TLS: a unix socket has no RST.
    """
    answer = unharmed.server.connect_tls(f"edge1:{FLOOD}")
    clients.receive_exactly(answer.socket, 1 << 20)
    # With unread bytes from its peer, a killed process's socket is reset and not closed.
    answer.socket.sendall(b"never read by the flood")
    wait_until(lambda: _unread(unharmed, FLOOD), "unread bytes at the target")
    unharmed.targets.kill()
    with pytest.raises(OSError, match=r"reset|violation|EOF"), answer:
        clients.receive_all(answer.socket)


def test_the_agent_is_killed_and_started_again_and_again(unharmed: Site, long: bool) -> None:
    for _ in range(20 if long else 3):
        answers = _open(unharmed, SILENT, 2)
        unharmed.agent.process.kill()
        unharmed.agent.start()
        unharmed.check_request()
        for answer in answers:
            answer.socket.close()


def test_an_agent_that_stands_still_is_found_out(unharmed: Site) -> None:
    """SIGSTOP: the kernel still acknowledges every byte; only the end-to-end ping detects it."""
    [answer] = _open(unharmed, ECHO, 1)
    unharmed.agent.process.pause()
    try:
        # Two pings a second apart; then some time for a busy machine.
        assert wait_until(lambda: _is_refused(unharmed), "the server to notice", deadline_seconds=20)
    finally:
        unharmed.agent.process.resume()
    unharmed.wait_request()
    with answer:
        assert answer.echoes(b"it goes on")


def _is_refused(site: Site) -> bool:
    with site.server.connect(f"edge1:{ECHO}", timeout_seconds=8) as answer:
        return answer.status == 503


def test_a_server_that_stands_still_is_found_out(unharmed: Site) -> None:
    unharmed.server.process.pause()
    try:
        unready = lambda: unharmed.agent.get("/readyz")[0] == 503  # noqa: E731
        wait_until(unready, "the agent to notice", deadline_seconds=8)
    finally:
        unharmed.server.process.resume()
    unharmed.wait_request()


@pytest.mark.parametrize("side", ["server", "agent"])
def test_sigterm_lets_a_stream_finish(unharmed: Site, side: str) -> None:
    """A stream has ``drain_seconds`` to finish; then it is reset, and the exit code is 0."""
    program = unharmed.server if side == "server" else unharmed.agent
    [running, stuck] = _open(unharmed, ECHO, 2)
    codes: list[int] = []
    stopping = threading.Thread(target=lambda: codes.append(program.process.stop()))
    stopping.start()
    program.process.wait_log("drain|stopping")
    assert running.echoes(b"still here")
    running.socket.shutdown(socket.SHUT_WR)
    assert clients.receive_all(running.socket) == b""
    assert _ends(stuck, deadline_seconds=10)
    stopping.join(20)
    assert codes == [0]
    running.socket.close()
