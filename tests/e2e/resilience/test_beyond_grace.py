"""The link stays away for longer than the grace: a user gets a hard end, in time, and never a clean one."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.e2e.resilience.installation import made_site
from tests.support.net import clients
from tests.support.net.emulated import Emulated
from tests.support.processes.site import ECHO, SOURCE, Site

ECHO_PORT, SOURCE_PORT = 7900, 7901
GRACE_SECONDS = 10
# The most that detection of the loss takes after the cut: a ping each second, and one late answer.
NOTICED_SECONDS = 3
# The grace counts from the last received byte, and bytes arrive each second while the link is used.
LAST_RECEIVED_SECONDS = 1.5
REPORTED_SECONDS = 2


@pytest.fixture(scope="module")
def site(network: Emulated, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    ports = ((ECHO_PORT, ECHO), (SOURCE_PORT, SOURCE))
    tcp = [
        {"listen": f"127.0.0.1:{port}", "node": "edge1", "target": f"localhost:{target}"}
        for port, target in ports
    ]
    changes = {"session": {"grace_seconds": GRACE_SECONDS}, "tcp": tcp}
    with made_site(network, tmp_path_factory.mktemp("grace"), changes) as made:
        made.start()
        yield made


def test_the_user_is_reset(whole: Site, net: Emulated) -> None:
    with whole.server.dial(ECHO_PORT) as user:
        user.sendall(b"before")
        assert clients.receive_exactly(user, 6) == b"before"
        took = _seconds_to_reset(user, net)
    assert GRACE_SECONDS - LAST_RECEIVED_SECONDS <= took <= NOTICED_SECONDS + GRACE_SECONDS + REPORTED_SECONDS
    net.restore()
    whole.wait_request()


def test_a_download_is_reset(whole: Site, net: Emulated) -> None:
    net.set(rate=2_500_000, delay_seconds=0.025, queue_seconds=0.1)
    with whole.server.dial(SOURCE_PORT) as user:
        user.sendall((1 << 40).to_bytes(8, "big"))
        assert clients.receive_exactly(user, 100_000)
        took = _seconds_to_reset(user, net)
    assert GRACE_SECONDS - LAST_RECEIVED_SECONDS <= took <= NOTICED_SECONDS + GRACE_SECONDS + REPORTED_SECONDS


def _seconds_to_reset(user: socket.socket, net: Emulated) -> float:
    cut_at = time.monotonic()
    net.cut()
    user.settimeout(NOTICED_SECONDS + GRACE_SECONDS + 10)
    with pytest.raises(ConnectionResetError):
        clients.receive_all(user)
    return time.monotonic() - cut_at
