"""kill -9 of a server or an agent: content that was cut off never looks complete at the other side.

A unix socket has no reset, so its users see a normal end. The documentation says so.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.attacks.ground import Ground
from tests.support.net import clients
from tests.support.processes.site import ECHO, FLOOD

Dial = Callable[[Ground, int], socket.socket]
DIALS: dict[str, Dial] = {
    "tcp": lambda site, port: site.dial_tcp(port),
    "tls": lambda site, port: site.connect_tls(port).socket,
}
BROKEN = (ConnectionResetError, ssl.SSLEOFError)
"""OpenSSL reports a reset within a record as an end without ``close_notify``, which is no end in TLS."""
_BYTES = 1 << 20


@contextlib.contextmanager
def upload(site: Ground) -> Iterator[socket.socket]:
    """The target's end of a stream through which some of a user's upload has arrived."""
    with (
        socket.create_server((site.address, 0)) as listener,
        site.connect_tls(listener.getsockname()[1]) as answer,
    ):
        assert answer.status == 200, answer.phrase
        target, _ = listener.accept()
        with target:
            target.settimeout(20)
            answer.socket.sendall(bytes(_BYTES))
            assert len(clients.receive_exactly(target, _BYTES)) == _BYTES
            yield target


@pytest.mark.parametrize("dial", DIALS)
def test_a_download_from_a_killed_server_is_reset(site: Ground, dial: str) -> None:
    with DIALS[dial](site, FLOOD) as user:
        clients.receive_exactly(user, _BYTES)
        site.server.process.kill()
        with pytest.raises(BROKEN):
            clients.receive_all(user)


def test_an_upload_through_a_killed_agent_is_reset_at_the_target(site: Ground) -> None:
    with upload(site) as target:
        site.agent.process.kill()
        with pytest.raises(ConnectionResetError):
            target.recv(1)


def test_an_upload_through_a_killed_server_is_reset_at_the_target(site: Ground) -> None:
    with upload(site) as target:
        site.server.process.kill()
        site.server.start()
        site.agent.wait_ready()
        with pytest.raises(ConnectionResetError):
            target.recv(1)


@pytest.mark.parametrize("dial", DIALS)
def test_an_agent_that_was_killed_and_started_again_resets_its_users(site: Ground, dial: str) -> None:
    with DIALS[dial](site, ECHO) as user:
        user.sendall(b"x")
        assert user.recv(1) == b"x"
        site.agent.process.kill()
        site.agent.start()
        with pytest.raises(BROKEN):
            user.recv(1)
