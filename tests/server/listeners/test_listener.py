"""Binding and accepting: addresses, unix sockets, bounds, descriptors, the end."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import resource
import socket
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.fakes.edge import open_edge, receive_all
from tests.support.net.dialling import dial
from tunnel_core.http import declining
from tunnel_core.http.declining import decline_http, decline_tls
from tunnel_core.streams.sockets import UNSENT_BYTES, SocketStream
from tunnel_core.streams.tls import TlsStream
from tunnel_server.listeners import addresses as binding
from tunnel_server.listeners import admission as admission_module
from tunnel_server.listeners import listener as listeners
from tunnel_server.listeners import tls as handshake
from tunnel_server.listeners.addresses import CannotListen, UnixAddress, bind_tcp, bind_unix, split_listen
from tunnel_server.listeners.admission import Admission
from tunnel_server.listeners.listener import AcceptedConnection, Listener, listen_tcp, listen_unix


async def hold(accepted: AcceptedConnection) -> None:
    """Send hello and keep the connection."""
    await accepted.stream.send_all(b"hello")
    await accepted.stream.receive_some()
    await accepted.stream.aclose()


def close(*sockets: socket.socket) -> None:
    for bound in sockets:
        bound.close()


async def test_a_host_with_two_addresses_gets_one_port() -> None:
    sockets = await bind_tcp("localhost:0")
    assert len({bound.getsockname()[1] for bound in sockets}) == 1
    close(*sockets)


async def test_the_ipv6_wildcard_takes_ipv4_too() -> None:
    (bound,) = await bind_tcp("[::]:0")
    port = bound.getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        async with await trio.open_tcp_stream(host, port):
            bound.accept()[0].close()
    close(bound)


async def test_without_ipv6_the_wildcard_is_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    listen_on = binding._listen_on

    def without_ipv6(family: int, where: tuple[str, int]) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return listen_on(family, where)

    monkeypatch.setattr(binding, "_listen_on", without_ipv6)
    (bound,) = await bind_tcp("[::]:0")
    assert bound.getsockname()[0] == "0.0.0.0"
    close(bound)


async def test_a_taken_port_is_named_with_the_cure() -> None:
    (bound,) = await bind_tcp("127.0.0.1:0")
    port = bound.getsockname()[1]
    with pytest.raises(CannotListen, match=f"127.0.0.1:{port}.*ss -ltnp"):
        await bind_tcp(f"127.0.0.1:{port}")
    close(bound)


@pytest.mark.parametrize("address", ["localhost", "::1:80", "localhost:http", ":80", "localhost:70000"])
def test_addresses_that_cannot_be_read(address: str) -> None:
    with pytest.raises(CannotListen):
        split_listen(address)


def test_a_unix_socket_is_private_from_the_start(tmp_path: Path) -> None:
    bound = bind_unix(UnixAddress(tmp_path / "a.sock"))
    assert stat.S_IMODE((tmp_path / "a.sock").stat().st_mode) == 0o600
    close(bound)
    close(bind_unix(UnixAddress(tmp_path / "b.sock", 0o660, grp.getgrgid(os.getgid()).gr_name)))
    assert stat.S_IMODE((tmp_path / "b.sock").stat().st_mode) == 0o660


def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    address = UnixAddress(tmp_path / "a.sock")
    close(bind_unix(address))
    live = bind_unix(address)
    with pytest.raises(CannotListen, match="another program serves it"):
        bind_unix(address)
    close(live)


def test_a_file_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "a.sock").write_text("precious")
    with pytest.raises(CannotListen, match="not a socket"):
        bind_unix(UnixAddress(tmp_path / "a.sock"))
    assert (tmp_path / "a.sock").read_text() == "precious"


def test_a_file_system_without_sockets_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exFAT behaves so with FUSE: the bind fails, and leaves a plain file."""

    def fail(bound: socket.socket, address: UnixAddress) -> None:
        address.path.touch()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(binding, "_bind_privately", fail)
    with pytest.raises(CannotListen, match="Input/output error; FAT, CIFS and 9p carry no sockets"):
        bind_unix(UnixAddress(tmp_path / "a.sock"))
    assert not (tmp_path / "a.sock").exists()


@pytest.mark.parametrize(("mode", "folder"), [(0o600, 0o700), (0o660, 0o750), (0o666, 0o755)])
def test_a_missing_folder_is_made_for_those_who_may_open_the_socket(
    tmp_path: Path, mode: int, folder: int
) -> None:
    group = grp.getgrgid(os.getgid()).gr_name if mode == 0o660 else ""
    path = tmp_path / "run/qanat/egress.sock"
    before = os.umask(0o077)
    try:
        close(bind_unix(UnixAddress(path, mode, group)))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == folder
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_folder_below_one_of_others_is_for_root_to_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    with pytest.raises(CannotListen) as caught:
        bind_unix(UnixAddress(tmp_path / "qanat/egress.sock"))
    message = str(caught.value)
    assert (
        f"there is no folder {tmp_path}/qanat, and 54321 may not make it; as root: install -d -m 750"
        in message
    )
    assert not (tmp_path / "qanat").exists()


def test_below_run_the_unit_can_have_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    with pytest.raises(CannotListen, match="or RuntimeDirectory=no-such-folder in its systemd unit"):
        bind_unix(UnixAddress(Path("/run/no-such-folder/egress.sock")))


def test_an_unknown_group_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotListen, match="no group no-such-group"):
        bind_unix(UnixAddress(tmp_path / "a.sock", group="no-such-group"))


async def test_the_socket_file_goes_when_accepting_stops(tmp_path: Path) -> None:
    async with open_edge() as edge:
        path = tmp_path / "a.sock"
        listener = listen_unix(
            "connect", UnixAddress(path), Admission(9, 9, clock=trio.current_time), edge.records
        )
        assert listener.addresses == [str(path)]
        await edge.nursery.start(listener.serve, hold)
        listener.stop_accepting()
        assert not path.exists()
        listener.stop_accepting()


async def test_stopping_leaves_running_connections_alone() -> None:
    async with open_edge() as edge:
        listener = await listen_tcp(
            "tcp", ["127.0.0.1:0"], Admission(9, 9, clock=trio.current_time), edge.records
        )
        served = trio.Event()

        async def serve() -> None:
            await listener.serve(hold)
            served.set()

        edge.nursery.start_soon(serve)
        stream = await edge.dial(listener)
        assert await stream.receive_some() == b"hello"
        address = listener.addresses[0]
        listener.stop_accepting()
        await trio.testing.wait_all_tasks_blocked()
        assert not served.is_set()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", int(address.rsplit(":", 1)[1]))
        await stream.send_all(b"x")
        assert await receive_all(stream) == b""
        await served.wait()


async def test_a_connection_beyond_the_bound_is_closed_and_counted() -> None:
    async with open_edge() as edge:
        admission = Admission(2, 9, clock=trio.current_time)
        listener = await edge.listen("tcp", hold, admission)
        kept = [await edge.dial(listener) for _ in range(2)]
        for stream in kept:
            await stream.receive_some()
        with pytest.raises((trio.BrokenResourceError, OSError)):  # the reset may come during the dial
            await (await edge.dial(listener)).receive_some()
        assert edge.counters.unauthenticated_refusals == {("tcp", "too_many_connections"): 1}
        await kept[0].send_all(b"x")
        assert await receive_all(kept[0]) == b""
        assert await (await edge.dial(listener)).receive_some() == b"hello"


async def test_a_connection_beyond_the_sources_bound_waits_for_its_turn() -> None:
    async with open_edge() as edge:
        listener = await edge.listen("tcp", hold, Admission(99, 2, clock=trio.current_time))
        kept = [await edge.dial(listener) for _ in range(2)]
        for stream in kept:
            await stream.receive_some()
        third = await edge.dial(listener)
        await trio.testing.wait_all_tasks_blocked()
        await kept[0].send_all(b"x")
        assert await third.receive_some() == b"hello"
        assert not edge.counters.unauthenticated_refusals


def dial_from(host: str, address: str) -> trio.SocketStream:
    """A connection from ``host``, which is one of this machine's 127.0.0.0/8."""
    server, _, port = address.rpartition(":")
    sock = socket.create_connection((server, int(port)), source_address=(host, 0))
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def test_an_idle_connection_of_the_fullest_source_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "MIN_IDLE_SECONDS", 0.0)
    monkeypatch.setattr(listeners, "TURN_SECONDS", 60.0)
    async with open_edge() as edge:
        admission = Admission(99, 2, 4, clock=trio.current_time)
        address = (await edge.listen("https", hold, admission, decline_tls)).addresses[0]
        async with contextlib.AsyncExitStack() as opened:
            held = [
                await opened.enter_async_context(dial_from(host, address))
                for host in ("127.0.0.2", "127.0.0.3", "127.0.0.3", "127.0.0.4")
            ]
            for stream in held:
                assert await stream.receive_some() == b"hello"
            user = await opened.enter_async_context(dial_from("127.0.0.5", address))
            assert await user.receive_some() == b"hello"
            with pytest.raises(trio.BrokenResourceError):
                await held[1].receive_some()
            for stream in (held[0], held[2], held[3], user):
                await stream.send_all(b"x")
                assert await receive_all(stream) == b""
        await trio.testing.wait_all_tasks_blocked()
        assert edge.counters.unauthenticated_refusals == {("https", "too_many_connections"): 1}
        assert admission.open_connections == 0


async def test_a_handshake_that_waits_for_the_processor_does_not_give_way() -> None:
    """The handshakes of a fleet wait for the server's processor. Single bytes count for two steps only."""
    seconds = 0.0
    admission = Admission(99, 1, 1, clock=lambda: seconds)
    ticket, lock = admission.admit("192.0.2.1"), trio.Lock()
    turns, begun, done = handshake.HandshakeTurns(lock, ticket), trio.Event(), trio.Event()

    async def step() -> None:
        begun.set()
        async with turns:
            done.set()

    user = admission.admit("192.0.2.2")
    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(step)
            await trio.testing.wait_all_tasks_blocked()
            seconds += 5
            admission.make_room()
            assert begun.is_set() and not done.is_set() and ticket.evicted is None
        await done.wait()
    async with turns:
        seconds += 5
    admission.make_room()
    assert ticket.evicted is None, "it was served just now"
    seconds += 1.5
    async with turns:
        seconds += 0.5
    admission.make_room()
    assert ticket.evicted is not None and not user.waits


async def test_a_handshake_that_is_cancelled_in_its_turn_is_idle_again() -> None:
    seconds = 0.0
    admission = Admission(99, 1, 1, clock=lambda: seconds)
    ticket, lock = admission.admit("192.0.2.1"), trio.Lock()
    turns = handshake.HandshakeTurns(lock, ticket)
    async with lock:
        with trio.move_on_after(0):
            async with turns:
                raise AssertionError
    admission.admit("192.0.2.2")
    seconds += 2
    admission.make_room()
    assert ticket.evicted is not None


async def test_the_waiting_line_gives_a_place_to_a_source_of_which_none_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listeners, "TURN_SECONDS", 60.0)
    async with open_edge() as edge:
        admission = Admission(99, 2, 2, clock=trio.current_time)
        address = (await edge.listen("web", hold, admission, decline_http)).addresses[0]
        async with contextlib.AsyncExitStack() as opened:
            crowd = [await opened.enter_async_context(dial_from("127.0.0.2", address)) for _ in range(4)]
            for stream in crowd[:2]:
                assert await stream.receive_some() == b"hello"
            user = await opened.enter_async_context(dial_from("127.0.0.5", address))
            await crowd[3].send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await receive_all(crowd[3])).startswith(b"HTTP/1.1 429 2 unauthenticated connections")
            await crowd[0].send_all(b"x")
            await crowd[1].send_all(b"x")
            assert await user.receive_some() == b"hello"


async def test_a_turn_that_does_not_come_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "TURN_SECONDS", 0.05)
    async with open_edge() as edge:
        admission = Admission(99, 1, clock=trio.current_time)
        listener = await edge.listen("web", hold, admission, decline_http)
        kept = await edge.dial(listener)
        await kept.receive_some()
        late = await edge.dial(listener)
        await late.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        head = (await receive_all(late)).decode()
        assert head.startswith("HTTP/1.1 429 1 unauthenticated connections from 127.0.0.1 are open")
        assert edge.counters.unauthenticated_refusals == {("web", "too_many_from_source"): 1}
        assert admission.open_connections == 1


async def test_a_browser_gets_an_answer_when_there_are_too_many() -> None:
    async with open_edge() as edge:
        listener = await edge.listen("web", hold, Admission(1, 1, clock=trio.current_time), decline_http)
        await (await edge.dial(listener)).receive_some()
        stream = await edge.dial(listener)
        await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        head, _, body = (await receive_all(stream)).decode().partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 503 1 connections are open here, which is the limit")
        assert "too_many_connections" in head and "try again later" in body


async def test_a_tls_client_reads_an_alert_and_no_reset(tmp_path: Path) -> None:
    async with open_edge() as edge:
        listener = await edge.listen("https", hold, Admission(1, 1, clock=trio.current_time), decline_tls)
        await (await edge.dial(listener)).receive_some()
        stream = TlsStream(await edge.dial(listener), ssl.create_default_context(), server_hostname="x")
        with pytest.raises(trio.BrokenResourceError, match="alert internal error"):
            await stream.do_handshake()
        assert edge.counters.unauthenticated_refusals == {("https", "too_many_connections"): 1}


async def test_connections_that_are_being_refused_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server resets the third at once, without waiting until another has read its refusal."""
    monkeypatch.setattr(declining, "MAX_DECLINING", 2)
    async with open_edge() as edge:
        listener = await edge.listen("web", hold, Admission(1, 1, clock=trio.current_time), decline_http)
        await (await edge.dial(listener)).receive_some()
        silent = [await edge.dial(listener) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises((trio.BrokenResourceError, OSError)):
            await (await edge.dial(listener)).receive_some()
        for stream in silent:
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 503")
        assert edge.counters.unauthenticated_refusals == {("web", "too_many_connections"): 3}


async def test_a_handler_that_fails_ends_its_own_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(accepted: AcceptedConnection) -> None:
        raise RuntimeError("a fault")

    async with open_edge() as edge:
        admission = Admission(9, 9, clock=trio.current_time)
        listener = await edge.listen("tcp", fail, admission)
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await (await edge.dial(listener)).receive_some()
        assert admission.open_connections == 0
        assert "failed at a connection" in caplog.text


async def test_a_listener_without_descriptors_logs_that_and_recovers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "qanat.listeners")
    async with open_edge() as edge:
        listener = await edge.listen("tcp", hold)
        client = socket.socket()
        client.setblocking(False)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            host, port = listener.addresses[0].rsplit(":", 1)
            assert client.connect_ex((host, int(port))) in (0, errno.EINPROGRESS)
            await trio.sleep(0.35)
            output = [record for record in caplog.records if "descriptor limit" in record.message]
            assert len(output) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await trio.lowlevel.wait_readable(client)
        assert client.recv(10) == b"hello"
        assert "accepts connections again" in caplog.text
        client.close()


class Flapping(socket.socket):
    """A listening socket whose every second connection finds no descriptor free."""

    refusals = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if self.refusals % 2 == 0:
            self.refusals += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        accepted = super().accept()
        self.refusals += 1
        return accepted


async def test_a_listener_that_has_descriptors_off_and_on_logs_both_at_most_once_a_second(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each pause takes 0.1 s, so eight of them are within a second."""
    caplog.set_level("INFO", "qanat.listeners")
    bound = Flapping()
    bound.bind(("127.0.0.1", 0))
    bound.listen()
    bound.setblocking(False)
    async with open_edge() as edge:
        listener = Listener("tcp", [bound], Admission(9, 9, clock=trio.current_time), edge.records)
        await edge.nursery.start(listener.serve, hold)
        for _ in range(8):
            with socket.create_connection(bound.getsockname()) as client:
                client.setblocking(False)
                await trio.lowlevel.wait_readable(client)
                assert client.recv(10) == b"hello"
        listener.stop_accepting()
    lines = [record.getMessage() for record in caplog.records if record.name == "qanat.listeners"]
    failures = [line for line in lines if "descriptor limit" in line]
    recoveries = [line for line in lines if "accepts connections again" in line]
    assert 1 <= len(failures) == len(recoveries) < 8
    assert lines[-1] == "tcp accepts connections again"


async def test_the_address_of_an_ipv4_client_is_plain_on_a_dual_stack_listener() -> None:
    async with open_edge() as edge:
        seen: list[str] = []

        async def note(accepted: AcceptedConnection) -> None:
            seen.append(accepted.address)

        listener = await listen_tcp("tcp", ["[::]:0"], Admission(9, 9, clock=trio.current_time), edge.records)
        await edge.nursery.start(listener.serve, note)
        port = int(listener.addresses[0].rsplit(":", 1)[1])
        for host in ("127.0.0.1", "::1"):
            with pytest.raises(trio.BrokenResourceError):
                async with await dial(host, port) as stream:
                    await stream.receive_some()
        assert [address.rsplit(":", 1)[0] for address in seen] == ["127.0.0.1", "[::1]"]


async def test_accepted_sockets_are_tuned_as_dialled_ones() -> None:
    seen: list[tuple[int, ...]] = []

    async def note(accepted: AcceptedConnection) -> None:
        assert isinstance(accepted.stream, SocketStream)
        sock = accepted.stream.socket
        options = (
            (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT),
        )
        seen.append(tuple(sock.getsockopt(*option) for option in options))

    async with open_edge() as edge:
        stream = await edge.dial(await edge.listen("tcp", note))
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    assert seen == [(1, 1, 60, UNSENT_BYTES)]


async def test_the_kernel_queues_as_it_likes_for_connections_that_carry_sessions() -> None:
    async with open_edge() as edge:
        admission = Admission(9, 9, clock=trio.current_time)
        listener = await listen_tcp("agents", ["127.0.0.1:0"], admission, edge.records, is_carrier=True)
        seen: list[int] = []

        async def note(accepted: AcceptedConnection) -> None:
            assert isinstance(accepted.stream, SocketStream)
            sock = accepted.stream.socket
            seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT))

        await edge.nursery.start(listener.serve, note)
        host, _, port = listener.addresses[0].rpartition(":")
        async with await dial(host, int(port)) as stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
    assert seen == [0]
