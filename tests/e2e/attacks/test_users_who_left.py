"""Users who leave while the target is silent, or stay silent behind a half-close, hold no resources."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.attacks.echo import Echo
from tests.e2e.attacks.ground import MUTE, Ground
from tests.support.net import clients
from tests.support.processes.waiting import wait_until

USERS_OF_A_KIND = 50
HALF_CLOSED_SECONDS = 2.0
FINDING_SECONDS = 30.0
"""Two checks of 5 s at the server, the target's end of 5 s at the agent, and a busy machine."""

DIALS: dict[str, Callable[[Ground], socket.socket]] = {
    "unix": lambda site: site.connect(MUTE).socket,
    "tls": lambda site: site.connect_tls(MUTE).socket,
    "tcp": lambda site: site.dial_tcp(MUTE),
}


def enter(site: Ground, dial: str) -> socket.socket:
    """A user's connection to the silent target, with something on its way."""
    user = DIALS[dial](site)
    if user.family != socket.AF_UNIX:
        # The user's own kernel forgets the closed connection after a second, not after a minute.
        user.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)
    user.sendall(b"is anybody there?")
    return user


def end_half(user: socket.socket) -> None:
    user.shutdown(socket.SHUT_WR)


def streams(site: Ground) -> list[int]:
    """Those open at the server and at the agent."""
    return [int(program.metric("qanat_streams_open")) for program in (site.server, site.agent)]


def test_users_who_left_are_noticed(site: Ground, echo: Echo) -> None:
    wait_until(lambda: streams(site) == [1, 1], "no stream but the echo's")
    with echo.measured() as under:
        users = [enter(site, dial) for dial in DIALS for _ in range(USERS_OF_A_KIND)]
        wait_until(lambda: streams(site) == [1 + len(users)] * 2, "a stream for each user")
        for user in users:
            user.close()
        wait_until(
            lambda: streams(site) == [1, 1], "the users' streams to end", deadline_seconds=FINDING_SECONDS
        )
    under.require(echo.rest)


@pytest.fixture
def impatient_agent(site: Ground) -> Iterator[Ground]:
    """Run an agent that gives up half-closed streams after two silent seconds; the server has ten minutes."""
    site.configure(site.agent, session={"half_closed_seconds": HALF_CLOSED_SECONDS})
    restart(site)
    yield site
    site.configure(site.agent)
    restart(site)


def restart(site: Ground) -> None:
    site.agent.process.kill()
    site.agent.start()
    site.wait_request()


def test_users_who_stay_silent_behind_a_half_close_are_reset(impatient_agent: Ground) -> None:
    site = impatient_agent
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(enter(site, dial)) for dial in DIALS for _ in range(3)]
        [talking] = [stack.enter_context(site.connect(MUTE).socket)]
        for user in users:
            end_half(user)
        for user in users:
            user.settimeout(FINDING_SECONDS)
            if user.family == socket.AF_UNIX:
                assert clients.receive_all(user) == b""  # a unix socket has no reset
            else:
                with pytest.raises(ConnectionResetError):
                    clients.receive_all(user)
        talking.sendall(b"both halves are open, however long it is silent")
        talking.settimeout(0.2)
        with pytest.raises(TimeoutError):
            talking.recv(1)
    assert "idle_timeout" in site.server.process.log_text()
