"""Dialling: the checked address is the dialled one, each error has its reason, no socket is left open."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.pki.authority import server_context, server_leaf
from tunnel_agent.network.happy_eyeballs import Connect, connect_address
from tunnel_agent.network.resolver import Resolve, resolve_host
from tunnel_agent.targets.dialer import Dialler
from tunnel_agent.targets.policy import Policy, Published, parse_entry
from tunnel_agent.targets.tls import TargetTls
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tls import TlsStream

FILE = "/etc/qanat/agent.toml"


def dialler(
    *allow: str,
    services: Sequence[Published] = (),
    resolve: Resolve = resolve_host,
    connect: Connect = connect_address,
) -> Dialler:
    policy = Policy(node="edge1", file=FILE, allow=map(parse_entry, allow), services=services)
    return Dialler(policy, 10.0, TargetTls("edge1", FILE), resolve, connect)


async def refusal(dials: Dialler, target: str) -> Refused:
    with pytest.raises(Refused) as caught:
        await dials.dial(Target.parse(target))
    return caught.value


class Names:
    """A resolver with a table."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {name.replace("_", "."): found for name, found in names.items()}

    async def __call__(self, host: str) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.names[host]


class Network:
    """Addresses that answer after some virtual seconds, with a connection or an error number."""

    def __init__(self, **answers: tuple[float, int]) -> None:
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.dialled: list[tuple[float, str]] = []
        self.opened: list[SocketStream] = []

    async def connect(self, address: str, port: int) -> SocketStream:
        self.dialled.append((trio.current_time(), address))
        delay, number = self.answers["a" + address]
        await trio.sleep(delay)
        if number:
            raise OSError(number, os.strerror(number))
        near, far = socket.socketpair()
        far.close()
        self.opened.append(SocketStream(near))
        return self.opened[-1]

    def left_open(self) -> int:
        return sum(stream.socket.fileno() >= 0 for stream in self.opened)


def racer(network: Network, *addresses: str) -> Dialler:
    return dialler("db.local:80", resolve=Names(db_local=list(addresses)), connect=network.connect)


async def test_the_first_address_wins_if_it_answers_at_once(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(a10_0_0_1=(0.1, 0), a10_0_0_2=(0.0, 0))
    dialled = await racer(network, "10.0.0.1", "10.0.0.2").dial(Target.parse("db.local:80"))
    assert dialled.address == "10.0.0.1:80"
    assert len(network.dialled) == 1
    await dialled.stream.aclose()


async def test_a_slow_address_is_overtaken_and_its_attempt_is_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network(a10_0_0_1=(5.0, 0), a10_0_0_2=(0.1, 0))
    start = trio.current_time()
    dialled = await racer(network, "10.0.0.1", "10.0.0.2").dial(Target.parse("db.local:80"))
    assert dialled.address == "10.0.0.2:80"
    assert trio.current_time() - start == pytest.approx(0.35)
    assert network.left_open() == 1
    await dialled.stream.aclose()


async def test_a_refusal_starts_the_next_attempt_at_once(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(a10_0_0_1=(0.0, errno.ECONNREFUSED), a10_0_0_2=(0.0, 0))
    dialled = await racer(network, "10.0.0.1", "10.0.0.2").dial(Target.parse("db.local:80"))
    assert dialled.address == "10.0.0.2:80"
    assert [when for when, _ in network.dialled] == pytest.approx([network.dialled[0][0]] * 2)
    await dialled.stream.aclose()


async def test_two_that_connect_in_the_same_instant_leave_one(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(a10_0_0_1=(0.5, 0), a10_0_0_2=(0.25, 0))
    dialled = await racer(network, "10.0.0.1", "10.0.0.2").dial(Target.parse("db.local:80"))
    assert network.left_open() == 1
    await dialled.stream.aclose()


async def test_the_first_failure_is_reported_when_all_fail(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(a10_0_0_1=(0.0, errno.EHOSTUNREACH), a10_0_0_2=(0.0, errno.ECONNREFUSED))
    error = await refusal(racer(network, "10.0.0.1", "10.0.0.2"), "db.local:80")
    assert error.reason is Reason.DIAL_UNREACHABLE
    assert error.detail == "node edge1: db.local:80 cannot be reached (No route to host)"


async def test_a_target_that_never_answers_is_given_up_at_the_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    network = Network(a10_0_0_1=(1000.0, 0), a10_0_0_2=(1000.0, 0))
    start = trio.current_time()
    error = await refusal(racer(network, "10.0.0.1", "10.0.0.2"), "db.local:80")
    assert error.reason is Reason.DIAL_TIMEOUT
    assert error.detail == "node edge1: db.local:80 did not answer within 10 s"
    assert trio.current_time() - start == pytest.approx(10.0)


async def test_a_resolver_that_never_answers_is_named_as_the_cause(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def never(host: str) -> Sequence[str]:
        await trio.sleep_forever()
        raise AssertionError

    error = await refusal(dialler("db.local:80", resolve=never), "db.local:80")
    assert error.reason is Reason.NAME_NOT_RESOLVED
    assert error.detail == "node edge1 cannot resolve db.local: its resolver did not answer in 10 s"


async def test_a_name_that_is_not_known(autojump_clock: trio.testing.MockClock) -> None:
    error = await refusal(dialler("db.local:80", resolve=Names()), "db.local:80")
    assert error.reason is Reason.NAME_NOT_RESOLVED
    assert error.detail == "node edge1 cannot resolve db.local: Name or service not known"
    assert (await refusal(dialler("db.local:80", resolve=Names(db_local=[])), "db.local:80")).reason is (
        Reason.NAME_NOT_RESOLVED
    )


async def test_only_the_checked_addresses_are_dialled(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(a10_0_0_1=(0.0, 0))
    names = Names(web_local=["169.254.169.254", "192.168.0.1", "10.0.0.1"])
    dials = dialler("10.0.0.0/8:80", resolve=names, connect=network.connect)
    dialled = await dials.dial(Target.parse("web.local:80"))
    assert [address for _, address in network.dialled] == ["10.0.0.1"]
    await dialled.stream.aclose()


async def test_a_forbidden_target_is_never_resolved() -> None:
    async def unasked(host: str) -> Sequence[str]:
        raise AssertionError(host)

    error = await refusal(dialler("db.local:80", resolve=unasked), "evil.local:80")
    assert error.reason is Reason.TARGET_NOT_ALLOWED


async def test_cancelling_a_dial_leaves_no_socket(autojump_clock: trio.testing.MockClock) -> None:
    network = Network(a10_0_0_1=(5.0, 0))
    with trio.move_on_after(1):
        await racer(network, "10.0.0.1").dial(Target.parse("db.local:80"))
    assert network.left_open() == 0


async def test_localhost_asks_no_resolver_and_finds_either_family() -> None:
    async def unasked(host: str) -> Sequence[str]:
        raise AssertionError(host)

    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((host, 0))
            listener.listen()
            port = listener.getsockname()[1]
            dialled = await dialler(f"localhost:{port}", resolve=unasked).dial(
                Target.parse(f"localhost:{port}")
            )
            assert dialled.address in {f"127.0.0.1:{port}", f"[::1]:{port}"}
            assert isinstance(dialled.stream, SocketStream)
            assert dialled.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await dialled.stream.aclose()


async def test_no_program_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{unused.getsockname()[1]}"
        error = await refusal(dialler(target), target)
    assert error.reason is Reason.DIAL_REFUSED
    assert error.detail == f"node edge1: {target} refused the connection; is it running?"


@pytest.mark.parametrize("name", ["x.sock", "b\u00fccher.sock"])
async def test_unix_sockets(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / name)
    target = f"unix:{path}"
    assert (await refusal(dialler(target), target)).detail == f"node edge1: {target} does not exist"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert (await refusal(dialler(target), target)).reason is Reason.DIAL_REFUSED
        listener.listen()
        dialled = await dialler(target).dial(Target.parse(target))
        assert dialled.address == target
        await dialled.stream.aclose()


async def test_a_full_unix_backlog_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "x.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_connects, dialler(f"unix:{path}"), f"unix:{path}")
                await trio.testing.wait_all_tasks_blocked()
                listener.accept()[0].close()


async def _connects(dials: Dialler, target: str) -> None:
    dialled = await dials.dial(Target.parse(target))
    await dialled.stream.send_all(b"x")
    await dialled.stream.aclose()


def https_service(port: int, **settings: object) -> Published:
    return Published("web", Target.parse(f"localhost:{port}"), "https", **settings)  # type: ignore[arg-type]


async def test_an_https_service_is_dialled_inside_tls(tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_bytes(server_leaf().roots_pem)
    context = _plain_server_context(tmp_path)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(_serve_tls_once, context)
        dials = dialler(services=[https_service(port, ca_file=str(roots))])
        dialled = await dials.dial(Target.parse("web"), tls=True)
        assert isinstance(dialled.stream, TlsStream)
        await dialled.stream.send_all(b"hello")
        assert await dialled.stream.receive_some() == b"hello"
        await dialled.stream.aclose()


async def test_tls_of_an_unknown_issuer_is_refused_with_the_cure(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(_serve_tls_once, _plain_server_context(tmp_path))
        dials = dialler(services=[https_service(port)])
        with pytest.raises(Refused) as caught:
            await dials.dial(Target.parse("web"), tls=True)
    assert caught.value.reason is Reason.TARGET_PROTOCOL
    cure = f"set ca_file or verify = false for service web in {FILE}"
    assert caught.value.detail.startswith(f"node edge1: TLS to localhost:{port} failed: ")
    assert caught.value.detail.endswith(cure)


async def test_verification_can_be_switched_off_and_tls_left_to_the_user(tmp_path: Path) -> None:
    for tls in (True, False):
        async with trio.open_nursery() as nursery:
            port = await nursery.start(_serve_tls_once, _plain_server_context(tmp_path))
            dials = dialler(services=[https_service(port, verify=False)])
            dialled = await dials.dial(Target.parse("web"), tls=tls)
            assert isinstance(dialled.stream, TlsStream) is tls
            await dialled.stream.aclose()


def _plain_server_context(folder: Path) -> ssl.SSLContext:
    context = server_context(folder)
    context.verify_mode = ssl.CERT_NONE
    return context


async def _serve_tls_once(
    context: ssl.SSLContext, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        task_status.started(listener.socket.getsockname()[1])
        stream = trio.SSLStream(await listener.accept(), context, server_side=True)
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                while data := await stream.receive_some():
                    await stream.send_all(data)


class TestWithoutWaiting:
    async def test_a_listener_of_this_machine_is_connected_at_once(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            for target in (address, address.replace("127.0.0.1", "localhost")):
                dialled = dialler(target).dial_nowait(Target.parse(target))
                assert dialled is not None
                assert dialled.address == address
                dialled.stream.close_nowait()

    def test_refusing_and_remote_targets_need_the_waiting_dial(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        for target in (f"127.0.0.1:{port}", "192.0.2.1:80", "name.test:80", "unix:/nowhere"):
            assert dialler(target).dial_nowait(Target.parse(target)) is None

    def test_the_policy_decides_first(self) -> None:
        with pytest.raises(Refused) as caught:
            dialler("127.0.0.1:1").dial_nowait(Target.parse("127.0.0.1:2"))
        assert caught.value.reason is Reason.TARGET_NOT_ALLOWED

    def test_without_descriptors_it_leaves_the_refusal_to_the_dial_that_waits(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            assert dialler("127.0.0.1:1").dial_nowait(Target.parse("127.0.0.1:1")) is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
