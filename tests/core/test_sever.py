"""Sockets that somebody else owns, found and ended with all they have queued."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunnel_core.names import join_host_port
from tunnel_core.own_sockets import AcceptedSockets, has_lost_its_address, hold_back
from tunnel_core.sever import sever_accepted, sever_dialled

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
    sever_dialled(23_457)
    assert dialled.getpeername()
    sever_dialled(23_456)
    _assert_ended(dialled, accepted)


def test_by_where_it_came_from(ends: tuple[socket.socket, socket.socket]) -> None:
    dialled, accepted = ends
    _sever_accepted({_port(dialled)}, _address(dialled), "192.0.2.1:1")
    _assert_ended(accepted, dialled)


def test_a_connection_to_another_of_our_ports_is_left_alone() -> None:
    """One client's port leads to two listeners: an agent and a user behind one NAT, or on one machine."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        accepted = []
        source = ("127.0.0.1", 0)
        for listener in listeners:
            dialled = stack.enter_context(socket.socket())
            dialled.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            dialled.bind(source)
            dialled.connect(listener.getsockname())
            source = dialled.getsockname()
            accepted.append((dialled, stack.enter_context(listener.accept()[0])))
        (left_dialled, left), (ended_dialled, ended) = accepted
        assert _address(left_dialled) == _address(ended_dialled)
        _sever_accepted({_port(ended_dialled)}, _address(ended_dialled))
        _assert_ended(ended, ended_dialled)
        assert left.send(b"x")
        assert left_dialled.recv(1) == b"x"


def test_a_long_search_lets_others_run(ends: tuple[socket.socket, socket.socket]) -> None:
    """A thousand agents more cost more steps, none of them longer; one that ends meanwhile harms nobody."""
    with contextlib.ExitStack() as stack:
        pairs = [[stack.enter_context(sock) for sock in socket.socketpair()] for _ in range(200)]
        search = sever_accepted(AcceptedSockets({_port(ends[0])}), {_address(ends[0])})
        next(search)
        for pair in pairs[-100:]:
            pair[0].close()
        assert sum(1 for _ in search) >= 3
        _assert_ended(ends[1], ends[0])


def test_what_a_search_saw_is_found_again_at_once(ends: tuple[socket.socket, socket.socket]) -> None:
    """Also if its descriptor has been closed since, and is another connection's now."""
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.socket())
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sockets = AcceptedSockets({_port(ends[0]), listener.getsockname()[1]})
        pairs = [_connected(stack, listener) for _ in range(3)]
        (kept_dialled, kept), (closed_dialled, closed), (_, moved_to) = pairs
        search = sever_accepted(sockets, {_address(ends[0])})
        assert sum(1 for _ in search) > 1
        _assert_ended(ends[1], ends[0])
        os.dup2(moved_to.fileno(), closed.fileno())
        assert not list(sever_accepted(sockets, {_address(kept_dialled), _address(closed_dialled)}))
        _assert_ended(kept, kept_dialled)
        assert moved_to.send(b"x")
        assert list(sever_accepted(sockets, {_address(kept_dialled)}))


def test_many_that_were_seen_are_severed_step_by_step(ends: tuple[socket.socket, socket.socket]) -> None:
    """A whole fleet comes back in one moment."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sockets = AcceptedSockets({_port(ends[0]), listener.getsockname()[1]})
        pairs = [_connected(stack, listener) for _ in range(150)]
        assert list(sever_accepted(sockets, {_address(ends[0])}))
        assert len(list(sever_accepted(sockets, {_address(dialled) for dialled, _ in pairs}))) == 2
        for dialled, accepted in pairs[:3]:
            _assert_ended(accepted, dialled)


def _connected(stack: contextlib.ExitStack, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    dialled = stack.enter_context(socket.create_connection(listener.getsockname()))
    return dialled, stack.enter_context(listener.accept()[0])


def _address(dialled: socket.socket) -> str:
    host, port = dialled.getsockname()[:2]
    return join_host_port(host.removeprefix("::ffff:"), port)


@pytest.mark.parametrize(("address", "is_gone"), [("127.0.0.1", False), ("::1", False), ("192.0.2.77", True)])
def test_an_address_that_the_machine_does_not_have(address: str, is_gone: bool) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as dialled:
        dialled.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # stands for one that was taken away
        dialled.bind((address, 0))
        dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 23_458)
        assert has_lost_its_address(23_458) is is_gone
        assert not has_lost_its_address(23_459)


def test_who_is_held_back_sends_slowly_until_released() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as dialled:
        dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        dialled.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 23_460)
            dialled.setblocking(False)
            hold_back(23_460, held=True)
            sent = dialled.send(FULL)
            slow = _received(accepted, 1.0, sent)
            assert slow < sent / 2
            hold_back(23_460, held=False)
            # What is paced already waits for its time; at the old pace all of it would take seven seconds.
            assert slow + _received(accepted, 4.0, sent - slow) == sent


def _received(sock: socket.socket, seconds: float, most: int) -> int:
    """Bytes that come within this time, until there are as many as that."""
    count, end = 0, time.monotonic() + seconds
    with contextlib.suppress(TimeoutError):
        while count < most and (left := end - time.monotonic()) > 0:
            sock.settimeout(left)
            count += len(sock.recv(1 << 20))
    return count


def _port(dialled: socket.socket) -> int:
    """The listener's."""
    return int(dialled.getpeername()[1])


def _sever_accepted(ports: set[int], *addresses: str) -> None:
    for _ in sever_accepted(AcceptedSockets(ports), set(addresses)):
        continue


def _assert_ended(severed: socket.socket, other: socket.socket) -> None:
    """Its owner cannot write, and when it closes, what was queued is gone with it."""
    with pytest.raises(OSError, match=r"Broken pipe"):
        severed.send(b"more")
    severed.close()
    other.setblocking(True)
    with contextlib.suppress(ConnectionResetError):
        while other.recv(1 << 20):
            continue
    with pytest.raises(BrokenPipeError):
        other.sendall(FULL)


_TRY = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_locks_on_files_outlive_a_look_at_all_sockets(tmp_path: Path) -> None:
    """SQLite locks by fcntl(2): one close of a duplicate, and all locks on that file would be gone."""
    with (tmp_path / "store.db").open("w+") as file:
        fcntl.lockf(file, fcntl.LOCK_SH)
        _sever_accepted({7001}, "192.0.2.1:1")
        sever_dialled(1)
        argv = [sys.executable, "-c", _TRY, file.name]
        assert subprocess.run(argv, capture_output=True).returncode != 0  # noqa: S603 - our own command
