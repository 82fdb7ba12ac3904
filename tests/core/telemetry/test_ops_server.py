from __future__ import annotations

import functools
import ssl
from collections.abc import Mapping
from pathlib import Path

import h11
import pytest
import trio

from certs.ca import create_authority
from tests.support.net.dialling import dial
from tunnel_core.config.types import ListenAddress, Ops
from tunnel_core.http.server import HttpClientConnection, exchange
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_core.runtime import fd_limits as descriptors
from tunnel_core.telemetry import ops_places
from tunnel_core.telemetry import ops_server as ops
from tunnel_core.telemetry.counters import Counters
from tunnel_core.telemetry.ops_places import MAX_CONNECTIONS, PROBE_PLACES, Places
from tunnel_core.telemetry.ops_server import (
    OPERATOR,
    Answer,
    OpsAccess,
    OpsPages,
    OpsServer,
    OpsTls,
    page_route,
    serve_ops,
)

Heard = tuple[int, bytes]
LOOPBACK = Ops(listen=ListenAddress("127.0.0.1", 0))
ANYWHERE = Ops(listen=ListenAddress("0.0.0.0", 0))


NO_ACCESS = OpsAccess(None, None)


def pages(missing: str = "", counters: Counters | None = None) -> OpsPages:
    counters = counters or Counters()
    routes = [page_route("/", OPERATOR, lambda: Answer(b"<p>status", "text/html"))]
    return OpsPages(lambda: counters.snapshot(sessions=1), lambda: missing, routes, counters=counters)


async def get(
    server: OpsServer, path: str, headers: Mapping[str, str] | None = None, method: str = "GET"
) -> Heard:
    port = int(server.addresses[0].rpartition(":")[2])
    async with await dial("127.0.0.1", port) as stream:
        return await ask(stream, path, headers, method)


async def ask(
    stream: trio.abc.Stream, path: str, headers: Mapping[str, str] | None = None, method: str = "GET"
) -> Heard:
    lines = [*{"host": "localhost", **(headers or {})}.items()]
    request = h11.Request(method=method, target=path, headers=lines)
    response, body = await exchange(HttpClientConnection(stream), request, max_body_bytes=100_000)
    return response.status_code, body


async def test_loopback_shows_everything(nursery: trio.Nursery) -> None:
    server = await nursery.start(serve_ops, LOOPBACK, pages(), NO_ACCESS)
    assert await get(server, "/healthz") == (200, b"ok\n")
    assert await get(server, "/readyz") == (200, b"ready\n")
    assert await get(server, "/?query") == (200, b"<p>status")
    status, page = await get(server, "/metrics")
    assert status == 200
    assert b"\nqanat_sessions 1.0\n" in page


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost", "LocalHost:7004", "localhost.", "status.localhost:80")),
        *((host, 200) for host in ("127.0.0.1", "127.0.0.1:7004", "[::1]", "[::1]:7004", "10.0.0.7:7004")),
        *(
            (host, 403)
            for host in ("evil.example", "evil.example:7004", "localhost.evil.example", "127.0.0.1.nip.io")
        ),
        *((host, 403) for host in ("notlocalhost", "localhost@evil.example", "x[::1]", "1")),
    ],
)
async def test_on_loopback_a_name_that_a_page_has_rebound_reads_nothing(
    host: str, status: int, nursery: trio.Nursery
) -> None:
    server = await nursery.start(serve_ops, LOOPBACK, pages(), NO_ACCESS)
    for path in ("/", "/metrics", "/nothing"):
        answered, body = await get(server, path, {"host": host})
        assert answered == (404 if status == 200 and path == "/nothing" else status)
        assert (b"must set `Host: localhost`" in body) == (status == 403)
    assert await get(server, "/healthz", {"host": host}) == (200, b"ok\n")


async def test_no_page_may_frame_another_page(nursery: trio.Nursery) -> None:
    server = await nursery.start(serve_ops, LOOPBACK, pages(), NO_ACCESS)
    async with await dial("127.0.0.1", int(server.addresses[0].rpartition(":")[2])) as stream:
        request = h11.Request(method="GET", target="/", headers=[("host", "localhost")])
        response, _ = await exchange(HttpClientConnection(stream), request, max_body_bytes=1_000)
    assert (b"content-security-policy", b"frame-ancestors 'none'") in response.headers


async def test_a_program_that_is_not_ready_names_the_cause_and_stays_healthy(nursery: trio.Nursery) -> None:
    server = await nursery.start(serve_ops, LOOPBACK, pages("not_attached"), NO_ACCESS)
    assert await get(server, "/readyz") == (503, b"not_attached\n")
    assert await get(server, "/healthz") == (200, b"ok\n")


async def test_other_paths_and_methods_are_refused(nursery: trio.Nursery) -> None:
    server = await nursery.start(serve_ops, LOOPBACK, pages(), NO_ACCESS)
    status, body = await get(server, "/metricz")
    assert status == 404
    assert b"there is /, /metrics, /healthz, /readyz" in body
    assert (await get(server, "/healthz", method="POST"))[0] == 405


async def test_a_listener_that_is_off_ends_at_once(nursery: trio.Nursery) -> None:
    server = await nursery.start(serve_ops, Ops(), pages(), NO_ACCESS)
    assert server.addresses == []


async def test_beyond_loopback_only_the_probes_are_free(nursery: trio.Nursery) -> None:
    server = await nursery.start(serve_ops, ANYWHERE, pages(), NO_ACCESS)
    assert await get(server, "/healthz") == (200, b"ok\n")
    assert await get(server, "/readyz") == (200, b"ready\n")
    for path in ("/metrics", "/", "/nothing"):
        status, body = await get(server, path)
        assert status == 401
        assert b"needs [ops] bearer_file or tls" in body


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer s3cret", 200),
        ("bearer  s3cret", 200),
        ("Bearer s3cre", 401),
        ("Bearer s3cret2", 401),
        ("Bearer", 401),
        ("Basic s3cret", 401),
        ("s3cret", 401),
    ],
)
async def test_a_bearer_token_opens_the_metrics(
    header: str, status: int, tmp_path: Path, nursery: trio.Nursery
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    server = await nursery.start(serve_ops, ANYWHERE, pages(), OpsAccess(token, None))
    assert (await get(server, "/metrics", {"authorization": header}))[0] == status


async def test_a_token_can_be_replaced_and_no_token_opens_nothing(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    token = tmp_path / "token"
    server = await nursery.start(serve_ops, ANYWHERE, pages(), OpsAccess(token, None))
    for content, status in ((None, 401), ("", 401), ("one", 401), ("two", 200)):
        if content is not None:
            token.write_text(content)
        assert (await get(server, "/metrics", {"authorization": "Bearer two"}))[0] == status
    token.write_text("")
    assert (await get(server, "/metrics", {"authorization": "Bearer"}))[0] == 401


class Certificates:
    """A server's context that asks for client certificates, and contexts of clients."""

    def __init__(self, folder: Path) -> None:
        authority = create_authority("qanat.internal").authority
        self.folder = folder
        self.server_leaf = authority.issue(Role.SERVER, "main", names=("127.0.0.1",))
        self.user_leaf = authority.issue(Role.USER, "prometheus")
        self.roots = self.server_leaf.roots_pem.decode()

    def context(self, leaf: object, purpose: ssl.Purpose) -> ssl.SSLContext:
        context = ssl.create_default_context(purpose, cadata=self.roots)
        if leaf is not None:
            file = self.folder / f"{id(leaf)}.pem"
            file.write_bytes(leaf.credential.key_pem + leaf.chain_pem)  # type: ignore[attr-defined]
            context.load_cert_chain(file)
        return context

    def server(self) -> ssl.SSLContext:
        context = self.context(self.server_leaf, ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    async def get(self, server: OpsServer, path: str, leaf: object = None) -> Heard:
        plain = await trio.open_tcp_stream("127.0.0.1", int(server.addresses[0].rpartition(":")[2]))
        context = self.context(leaf, ssl.Purpose.SERVER_AUTH)
        async with trio.SSLStream(plain, context, server_hostname="127.0.0.1") as stream:
            return await ask(stream, path)


async def test_a_client_certificate_opens_the_metrics(tmp_path: Path, nursery: trio.Nursery) -> None:
    certificates, seen = Certificates(tmp_path), list[bytes]()
    access = OpsAccess(None, OpsTls(certificates.server, seen.append))
    server = await nursery.start(serve_ops, ANYWHERE, pages(), access)
    assert (await certificates.get(server, "/metrics", certificates.user_leaf))[0] == 200
    assert seen[0] in certificates.user_leaf.chain_pem
    assert await certificates.get(server, "/healthz") == (200, b"ok\n")
    status, body = await certificates.get(server, "/metrics")
    assert (status, b"needs a client certificate" in body) == (401, True)


async def test_a_certificate_of_the_wrong_role_opens_nothing(tmp_path: Path, nursery: trio.Nursery) -> None:
    def refuse(_: bytes) -> None:
        raise Refused(Reason.WRONG_ROLE, "users only")

    certificates = Certificates(tmp_path)
    access = OpsAccess(None, OpsTls(certificates.server, refuse))
    server = await nursery.start(serve_ops, ANYWHERE, pages(), access)
    assert (await certificates.get(server, "/metrics", certificates.user_leaf))[0] == 403


async def test_garbage_at_a_tls_listener_ends_alone(tmp_path: Path, nursery: trio.Nursery) -> None:
    certificates = Certificates(tmp_path)
    access = OpsAccess(None, OpsTls(certificates.server, lambda leaf: None))
    server = await nursery.start(serve_ops, ANYWHERE, pages(), access)
    async with await trio.open_tcp_stream("127.0.0.1", int(server.addresses[0].rpartition(":")[2])) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
            raise trio.BrokenResourceError
    assert await certificates.get(server, "/healthz") == (200, b"ok\n")


async def test_a_full_listener_answers_probes_and_refuses_other_requests(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops_places.Place, "idle", ops_places.Place.busy)  # each is served, and none gives way
    counters = Counters()
    server = await nursery.start(serve_ops, LOOPBACK, pages(counters=counters), NO_ACCESS)
    port = int(server.addresses[0].rpartition(":")[2])
    held = [await dial("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
    for stream in held:
        assert await ask(stream, "/healthz") == (200, b"ok\n")
    assert await get(server, "/healthz") == (200, b"ok\n")
    assert await get(server, "/readyz") == (200, b"ready\n")
    status, body = await get(server, "/metrics")
    assert status == 503 and b"is full and answers /healthz and /readyz only" in body
    probes = [await dial("127.0.0.1", port) for _ in range(PROBE_PLACES)]
    for stream in probes:
        assert await ask(stream, "/healthz") == (200, b"ok\n")
    with caplog.at_level("WARNING", "qanat.refusals"):
        status, body = await get(server, "/healthz")
    assert status == 503 and b"all connections of the [ops] listener are in use" in body
    assert counters.unauthenticated_refusals == {("ops", "too_many_connections"): 1}
    [fields] = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert (fields["entrance"], fields["reason"]) == ("ops", "too_many_connections")
    assert fields["source"].startswith("127.0.0.1:")
    await held.pop().aclose()
    with trio.fail_after(5):
        while (await get(server, "/metrics"))[0] != 200:
            await trio.testing.wait_all_tasks_blocked()
    for stream in [*held, *probes]:
        await stream.aclose()


@pytest.mark.parametrize("spoken", [b"", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /"])
async def test_the_longest_idle_connection_makes_room(
    spoken: bytes, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds wherever it is silent: 10 s of a head, 75 s between requests."""
    monkeypatch.setattr(ops, "Places", functools.partial(Places, min_idle_seconds=0.0))
    server = await nursery.start(serve_ops, LOOPBACK, pages(), NO_ACCESS)
    port = int(server.addresses[0].rpartition(":")[2])
    held = [await dial("127.0.0.1", port) for _ in range(MAX_CONNECTIONS)]
    for stream in held:
        await stream.send_all(spoken)
    await trio.testing.wait_all_tasks_blocked(0.01)
    for _ in range(2):
        assert (await get(server, "/metrics"))[0] == 200
    await trio.testing.wait_all_tasks_blocked(0.01)
    [fields] = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert fields["reason"] == "too_many_connections" and fields["detail"].endswith("connect again")
    gone = [await _is_over(stream) for stream in held[:4]]
    assert gone in ([True, False, False, False], [True, True, False, False]), (
        "the oldest, and no more than needed"
    )
    for stream in held:
        await trio.aclose_forcefully(stream)


async def _is_over(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(0.01):
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        return True
    return False


def test_the_text_of_the_descriptor_limit_has_what_it_carries() -> None:
    limit = descriptors.DescriptorLimit(before=1024, now=20_128)
    assert str(limit) == (
        "20128 file descriptors, raised from 1024: room for 20000 agents and streams together"
    )
    assert descriptors.DescriptorLimit(50, 50).carries == 0


def test_the_descriptor_limit_becomes_the_hard_one() -> None:
    limit = descriptors.raise_descriptor_limit()
    assert limit.now >= limit.before
    assert descriptors.raise_descriptor_limit().before == limit.now
