"""Sockets that gRPC owns: found in this process, and reset with everything they have queued."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunnel_core.carrier.grpc_sockets import has_lost_address, reset_dialled, throttle

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and TCP_USER_TIMEOUT")
_IP_FREEBIND = 15
FULL = bytes(1 << 20)


@pytest.fixture(params=["127.0.0.1", "::1", "mapped"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Dialled and accepted, the first with a full queue."""
    host = {"mapped": "::"}.get(request.param, request.param)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::") as listener:
        to = "127.0.0.1" if request.param == "mapped" else host
        dialled = socket.create_connection((to, listener.getsockname()[1]))
        accepted, _ = listener.accept()
    with dialled, accepted:
        dialled.setblocking(False)
        while True:
            try:
                dialled.send(FULL)
            except BlockingIOError:
                break
        yield dialled, accepted


def test_by_its_time_out(ends: tuple[socket.socket, socket.socket]) -> None:
    dialled, accepted = ends
    dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 23_456)
    reset_dialled(23_457)
    assert dialled.getpeername()
    reset_dialled(23_456)
    _assert_ended(dialled, accepted)


@pytest.mark.parametrize(("address", "is_gone"), [("127.0.0.1", False), ("::1", False), ("192.0.2.77", True)])
def test_an_address_that_the_machine_does_not_have(address: str, is_gone: bool) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as dialled:
        dialled.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # stands for a socket that was removed
        dialled.bind((address, 0))
        dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 23_458)
        assert has_lost_address(23_458) is is_gone
        assert not has_lost_address(23_459)


def test_a_throttled_peer_sends_slowly_until_released() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as dialled:
        dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        dialled.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 23_460)
            dialled.setblocking(False)
            throttle(23_460, enabled=True)
            sent = dialled.send(FULL)
            slow = _received(accepted, 1.0, sent)
            assert slow < sent / 2
            throttle(23_460, enabled=False)
            # What is paced already waits for its time; at the old pace all of it would take seven seconds.
            assert slow + _received(accepted, 4.0, sent - slow) == sent


def _received(sock: socket.socket, seconds: float, most: int) -> int:
    """Return the bytes that arrive within this time, up to this number."""
    count, end = 0, time.monotonic() + seconds
    with contextlib.suppress(TimeoutError):
        while count < most and (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            count += len(sock.recv(1 << 20))
    return count


def _assert_ended(was_reset: socket.socket, other: socket.socket) -> None:
    """Check that the owner cannot write, and that its close discards what was queued."""
    with pytest.raises(OSError, match=r"Broken pipe"):
        was_reset.send(b"more")
    was_reset.close()
    other.setblocking(True)
    with contextlib.suppress(ConnectionResetError):
        while other.recv(1 << 20):
            continue
    with pytest.raises(BrokenPipeError):
        other.sendall(FULL)


_TRY = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_file_locks_survive_a_search_of_all_sockets(tmp_path: Path) -> None:
    """SQLite locks by fcntl(2): one close of a duplicate would release all locks on that file."""
    with (tmp_path / "store.db").open("w+") as file:
        fcntl.lockf(file, fcntl.LOCK_SH)
        reset_dialled(1)
        argv = [sys.executable, "-c", _TRY, file.name]
        assert subprocess.run(argv, capture_output=True).returncode != 0  # noqa: S603 - our own command
