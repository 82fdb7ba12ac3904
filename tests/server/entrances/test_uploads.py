"""Answers to clients that are in the middle of a large upload: ordinary clients get each of them."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.server.entrances.test_https import client_context, tls_files
from tests.server.entrances.test_over_links import linked
from tests.support.fakes.edge import Edge, open_edge, receive_until
from tests.support.pki import authority as pki
from tests.support.processes.cloud import Cloud, open_cloud
from tunnel_core.config.types import ListenAddress, Ops
from tunnel_core.http.declining import Decline, decline_http, decline_tls
from tunnel_core.names import Target
from tunnel_core.reasons import Reason
from tunnel_core.streams import lingering
from tunnel_core.streams.lingering import linger
from tunnel_core.streams.relay import relay
from tunnel_core.streams.sockets import RESET_ON_CLOSE, SocketStream
from tunnel_core.streams.tunnel_stream import TunnelStream
from tunnel_core.telemetry.counters import Counters
from tunnel_core.telemetry.ops_places import MAX_CONNECTIONS, Place
from tunnel_core.telemetry.ops_server import OpsAccess, OpsPages, serve_ops
from tunnel_server.auth.identify import identify_by_certificate
from tunnel_server.entrances.tcp import TcpEntrance, TcpForward
from tunnel_server.listeners.admission import Admission
from tunnel_server.listeners.listener import Handler, Listener, listen_tcp
from tunnel_server.listeners.tls import TlsContexts, over_tls

UPLOAD = bytes(50_000_000)
WEB_HOST = {"Host": "red--edge1.localhost"}
TOO_LARGE = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!"


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def upload(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """The status and the reason's word, as Python's own client gets them."""
    with contextlib.closing(connection):
        connection.request("POST", path, UPLOAD, headers)
        answer = connection.getresponse()
        word = answer.getheader("qanat-reason") or answer.read().decode()
        return answer.status, word


def plain(address: str) -> http.client.HTTPConnection:
    host, _, port = address.rpartition(":")
    return http.client.HTTPConnection(host, int(port), timeout=20)


def secure(address: str, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection(
        "localhost", int(address.rpartition(":")[2]), context=context, timeout=20
    )


# Refusals by a whole server.


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with open_cloud(tmp_path_factory.mktemp("server")) as opened:
        yield opened


def roots_of(cloud: Cloud) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(cloud.folder / "ca" / "root.pem"))


@pytest.mark.parametrize("accept", ["*/*", "text/html"])
def test_web_refuses(cloud: Cloud, accept: str) -> None:
    headers = {**WEB_HOST, "Accept": accept}
    assert upload(plain(cloud.ready["web"]), "/", headers) == (404, "unknown_node")


def test_web_refuses_urllib(cloud: Cloud) -> None:
    url = f"http://{cloud.ready['web']}/nothing"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, UPLOAD, timeout=20)
    with caught.value as answer:
        assert (answer.code, answer.headers["qanat-reason"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "headers", "answer"),
    [
        ("/api/v1/nodes", {}, (401, "unauthenticated")),
        ("/.well-known/est/nothing", {}, (404, "not_found")),
        ("/.well-known/est/cacerts", {}, (405, "method_not_allowed")),
        ("/.well-known/est/simpleenroll", {"Content-Type": "text/plain"}, (400, "bad_csr")),
        ("/.well-known/est/simpleenroll", {"Content-Type": "application/pkcs10"}, (400, "bad_csr")),
        ("/", {"Transfer-Encoding": "chunked", "Content-Length": "50000000"}, (400, "bad_request")),
    ],
)
def test_https_refuses(cloud: Cloud, path: str, headers: dict[str, str], answer: tuple[int, str]) -> None:
    assert upload(secure(cloud.https, roots_of(cloud)), path, headers) == answer


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/api/v1/nodes", (405, "method_not_allowed")),
        ("/api/v1/admin/tokens/create", (400, "bad_request")),
        ("/nothing", (404, "not_found")),
    ],
)
def test_the_admin_socket_refuses(cloud: Cloud, path: str, answer: tuple[int, str]) -> None:
    assert upload(UnixConnection(cloud.folder / "admin.sock"), path, {}) == answer


def test_ops_refuses(cloud: Cloud) -> None:
    assert upload(plain(cloud.ready["ops"]), "/metrics", {}) == (405, "method_not_allowed")


# A refused certificate: in TLS 1.3 the client sends its request before it learns of the refusal.


async def test_an_alert_arrives_in_the_middle_of_an_upload(tmp_path: Path) -> None:
    async with open_edge() as edge:
        listener = await serve_tls(edge, tmp_path, 99)
        context = client_context(tmp_path, pki.user_leaf("eve", "other.internal"))

        def ask() -> None:
            with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
                upload(secure(listener.addresses[0], context), "/", {})

        await trio.to_thread.run_sync(ask)


# Listeners without room: ``declining``.


async def serve_tls(edge: Edge, folder: Path, most: int) -> Listener:
    contexts = TlsContexts(tls_files(folder))
    https_entrance = edge.https_entrance(identify_by_certificate(pki.TRUST_DOMAIN))
    handler = over_tls("https", contexts, 5, https_entrance.serve, edge.records)
    return await listening(edge, most, handler, decline_tls)


async def listening(edge: Edge, most: int, handler: Handler, decline: Decline) -> Listener:
    admission = Admission(most, 99, clock=trio.current_time)
    listener = await listen_tcp("https", ["127.0.0.1:0"], admission, edge.records, decline)
    await edge.nursery.start(listener.serve, handler)
    return listener


async def test_a_full_listener_names_the_cause(tmp_path: Path) -> None:
    async with open_edge() as edge:
        web = edge.web()
        bare = await listening(edge, 0, web.serve, decline_http)
        answer = await trio.to_thread.run_sync(upload, plain(bare.addresses[0]), "/", WEB_HOST)
        assert answer == (503, "too_many_connections")
        tls = await serve_tls(edge, tmp_path, 0)
        context = client_context(tmp_path, pki.user_leaf("kim"))

        def ask() -> None:
            with pytest.raises(ssl.SSLError, match=r"(?i)internal.error"):
                upload(secure(tls.addresses[0], context), "/", {})

        await trio.to_thread.run_sync(ask)


async def test_a_full_ops_listener_names_the_cause(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Place, "idle", Place.busy)  # none is closed
    counters = Counters()
    pages = OpsPages(lambda: counters.snapshot(sessions=1), lambda: "", counters=counters)
    settings, access = Ops(listen=ListenAddress("127.0.0.1", 0)), OpsAccess(None, None)
    server = await nursery.start(serve_ops, settings, pages, access)
    port = int(server.addresses[0].rpartition(":")[2])
    with contextlib.ExitStack() as held:
        for _ in range(MAX_CONNECTIONS):
            held.enter_context(socket.create_connection(("127.0.0.1", port)))
        answer = await trio.to_thread.run_sync(upload, plain(server.addresses[0]), "/metrics", {})
        assert answer == (503, "too_many_connections")


# A target that answers before it has read the body, behind an agent's relay.


def answer_and(then: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """A target that answers 413 once it has a little of the body."""

    def serve(accepted: socket.socket) -> None:
        with accepted, contextlib.suppress(OSError):  # the test's end resets what is still open
            data = b""
            while b"\r\n\r\n" not in data:
                data += accepted.recv(65536)
            accepted.sendall(TOO_LARGE)
            then(accepted)

    return serve


def goes_on_reading(accepted: socket.socket) -> None:
    while accepted.recv(65536):
        pass


def closes_over_the_rest(accepted: socket.socket) -> None:
    accepted.recv(1)  # so that a part of the body is there


def resets(accepted: socket.socket) -> None:
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def stops_reading(accepted: socket.socket) -> None:
    accepted.shutdown(socket.SHUT_WR)
    poller = select.poll()
    poller.register(accepted, 0)
    poller.poll(1000)  # or until it is reset


def target_task(serve: Callable[[socket.socket], None]) -> Callable[[TunnelStream], Awaitable[None]]:
    """The agent's part of a stream: a dial, and the relay, as ``tunnel_agent/targets/serve.py`` has it."""

    async def agent(stream: TunnelStream) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            dialled = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
        accepted.settimeout(20)
        stream.accept("127.0.0.1:80")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, serve, accepted)
            await relay(
                stream,
                SocketStream(dialled),
                break_reason=Reason.TARGET_RESET,
                cancel_reason=Reason.AGENT_STOPPING,
            )

    return agent


TARGETS = [goes_on_reading, closes_over_the_rest, resets, stops_reading]


@pytest.mark.parametrize("then", TARGETS)
async def test_the_early_answer_of_a_target_arrives_through_web(
    then: Callable[[socket.socket], None],
) -> None:
    async with linked(target_task(answer_and(then))) as (edge, _):
        listener = await edge.listen("web", edge.web().serve)
        connection = plain(listener.addresses[0])
        answer = await trio.to_thread.run_sync(upload, connection, "/", WEB_HOST)
        assert answer == (413, "no!")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert edge.counters.closed_streams == {("web", "done"): 1}


@pytest.mark.parametrize("then", TARGETS)
async def test_a_targets_data_arrives_before_its_reset_through_tcp(
    then: Callable[[socket.socket], None],
) -> None:
    """Bytes are relayed unchanged, so the reset arrives too; a client that reads has the answer by then."""
    async with linked(target_task(answer_and(then))) as (edge, _):
        forward = TcpForward("127.0.0.1:0", "edge1", Target.parse("localhost:80"))
        user = await edge.dial(await edge.listen("tcp", TcpEntrance(edge.opener, forward).serve))
        await user.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + bytes(200_000))
        assert await receive_until(user, b"no!") == TOO_LARGE


# The bounds.


async def test_a_silent_client_is_left_after_five_seconds(autojump_clock: MockClock) -> None:
    client, server = trio.testing.memory_stream_pair()
    began = trio.current_time()
    await linger(server, is_sending=True)
    assert trio.current_time() - began == lingering.LONG.silence_seconds
    await client.aclose()


async def test_a_client_that_drips_is_left_after_a_minute(autojump_clock: MockClock) -> None:
    client, server = trio.testing.memory_stream_pair()

    async def drip() -> None:
        while True:
            await client.send_all(b"x")
            await trio.sleep(lingering.LONG.silence_seconds - 1)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        await linger(server, is_sending=True)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began == lingering.LONG.seconds


async def test_a_client_without_end_is_left_after_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "LONG", lingering.Bounds(60, 5, 1_000_000))
    near, far = socket.socketpair()
    client, server = SocketStream(near), SocketStream(far)
    sent = 0

    async def flood() -> None:
        nonlocal sent
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await client.send_all(bytes(65536))
                sent += 65536

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        await linger(server, is_sending=True)
        server.close_nowait()
    assert 1_000_000 <= sent < 3_000_000
    client.close_nowait()


async def test_so_many_linger_long_and_no_more(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        pairs = [trio.testing.memory_stream_pair() for _ in range(lingering.MAX_LINGERING + 1)]
        seconds: list[float] = []

        async def time(stream: trio.abc.Stream) -> None:
            began = trio.current_time()
            await linger(stream, is_sending=True)
            seconds.append(trio.current_time() - began)

        for _, server in pairs:
            nursery.start_soon(time, server)
    assert sorted(seconds) == [1.0, *([5.0] * lingering.MAX_LINGERING)]
    assert lingering._Count.lingering == 0
