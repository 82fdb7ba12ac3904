"""Identification of users: client certificates over TLS 1.3, and peers of unix sockets."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from certs.ca import Leaf
from tests.support.fakes.edge import Edge, echo, open_edge, receive_all, receive_until
from tests.support.pki import authority as pki
from tests.support.pki.issuing import open_issuing
from tunnel_core.http.server import HttpConnection
from tunnel_core.identity import Role
from tunnel_core.streams.tls import TlsStream
from tunnel_server.auth.identify import (
    Identify,
    identify_by_certificate,
    identify_by_file_mode,
    identify_by_peer,
)
from tunnel_server.entrances import https as front_module
from tunnel_server.entrances.https import HttpsEntrance
from tunnel_server.listeners.addresses import UnixAddress
from tunnel_server.listeners.admission import Admission
from tunnel_server.listeners.listener import Listener, listen_unix
from tunnel_server.listeners.tls import TlsContexts, TlsFiles, over_tls

CONNECT = b"CONNECT edge1:80 HTTP/1.1\r\nHost: x\r\n\r\n"


def tls_files(folder: Path, **changes: object) -> TlsFiles:
    leaf = pki.server_leaf()
    (folder / "server.pem").write_bytes(leaf.chain_pem)
    (folder / "server.key").write_bytes(leaf.credential.key_pem)
    (folder / "trust.pem").write_bytes(leaf.roots_pem)
    return TlsFiles(folder / "server.pem", folder / "server.key", folder / "trust.pem", **changes)


def https_entrance(edge: Edge, identify: Identify) -> HttpsEntrance:
    return edge.https_entrance(identify, edge.connect())


async def serve_tls(edge: Edge, folder: Path, seconds: float = 5.0, **changes: object) -> Listener:
    contexts = TlsContexts(tls_files(folder, **changes))
    handler = over_tls(
        "https",
        contexts,
        seconds,
        https_entrance(edge, identify_by_certificate(pki.TRUST_DOMAIN)).serve,
        edge.records,
    )
    return await edge.listen("https", handler)


def client_context(folder: Path, leaf: Leaf | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=pki.server_leaf().roots_pem.decode())
    if leaf is not None:
        (folder / "client.pem").write_bytes(leaf.credential.key_pem + leaf.chain_pem)
        context.load_cert_chain(folder / "client.pem")
    return context


async def ask(edge: Edge, listener: Listener, context: ssl.SSLContext) -> bytes:
    """Return the answer to a CONNECT, or the TLS error in its place."""
    stream = TlsStream(await edge.dial(listener), context, server_hostname="localhost")
    try:
        await stream.do_handshake()
        await stream.send_all(CONNECT)
        return await receive_until(stream, b"\r\n\r\n")
    except trio.BrokenResourceError as error:
        return str(error).encode()


async def test_a_users_certificate_opens_streams_under_its_name(tmp_path: Path) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        listener = await serve_tls(edge, tmp_path)
        answer = await ask(edge, listener, client_context(tmp_path, pki.user_leaf("alice")))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert session.streams[0].user == "alice"


async def test_bytes_and_half_close_go_through_tls(tmp_path: Path) -> None:
    async with open_edge() as edge:
        edge.attach("edge1", echo)
        listener = await serve_tls(edge, tmp_path)
        context = client_context(tmp_path, pki.user_leaf("alice"))
        stream = TlsStream(await edge.dial(listener), context, server_hostname="localhost")
        await stream.do_handshake()
        await stream.send_all(CONNECT)
        await receive_until(stream, b"\r\n\r\n")
        received = bytearray()

        async def receive() -> None:
            received.extend(await receive_all(stream))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for _ in range(20):
                await stream.send_all(bytes(100_000))
            await stream.send_eof()
        assert len(received) == 2_000_000
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert edge.counters.closed_streams == {("connect", "done"): 1}


@pytest.mark.parametrize(
    ("leaf", "says"),
    [
        (None, b"HTTP/1.1 401 no client certificate was shown"),
        (lambda: pki.node_leaf("edge1"), b"HTTP/1.1 403 the certificate is the node edge1's"),
        (lambda: pki.user_leaf("eve", "other.internal"), b"unknown ca"),
        (lambda: pki.expired_leaf(Role.USER, "bob"), b"certificate expired"),
        (pki.server_leaf, b"unsupported certificate"),
    ],
)
async def test_callers_that_are_refused(tmp_path: Path, leaf: object, says: bytes) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        listener = await serve_tls(edge, tmp_path)
        answer = await ask(edge, listener, client_context(tmp_path, leaf() if callable(leaf) else None))
        assert says in answer
        assert not session.streams


async def test_a_connection_without_a_certificate_may_not_idle_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "STRANGER_IDLE_SECONDS", 0.0)
    async with open_issuing(tmp_path) as issuing:
        edge, request = issuing.edge, b"GET /api/v1/join HTTP/1.1\r\nhost: x\r\n\r\n"
        for leaf, stays in ((None, False), (pki.node_leaf("edge1"), False), (pki.user_leaf("alice"), True)):
            context = client_context(tmp_path, leaf)
            stream = TlsStream(await edge.dial(issuing.listener), context, server_hostname="localhost")
            await stream.do_handshake()
            await stream.send_all(request)
            assert (await receive_until(stream, b"}\n")).startswith(b"HTTP/1.1 200 ")
            if stays:
                await stream.send_all(request)
                assert (await receive_until(stream, b"}\n")).startswith(b"HTTP/1.1 200 ")
            else:
                assert await receive_all(stream) == b""


async def test_a_refused_caller_holds_no_place_of_the_source_while_the_answer_is_delivered(
    tmp_path: Path,
) -> None:
    async with open_edge() as edge:
        contexts = TlsContexts(tls_files(tmp_path))
        serve = https_entrance(edge, identify_by_certificate(pki.TRUST_DOMAIN)).serve
        handler = over_tls("https", contexts, 5.0, serve, edge.records)
        listener = await edge.listen("https", handler, Admission(9, 1, clock=lambda: 0.0))
        uploads = []
        for _ in range(4):
            stream = TlsStream(
                await edge.dial(listener), client_context(tmp_path, None), server_hostname="localhost"
            )
            await stream.do_handshake()
            await stream.send_all(
                b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n" + bytes(1000)
            )
            assert (await receive_all(stream)).startswith(b"HTTP/1.1 401 ")
            uploads.append(stream)
        for stream in uploads:
            await stream.send_all(bytes(1000))
        await trio.testing.wait_all_tasks_blocked()
        assert edge.counters.unauthenticated_refusals == {("https", "unauthenticated"): 4}


@pytest.mark.parametrize("header", [b"Origin: https://evil.example", b"Sec-Fetch-Site: cross-site"])
async def test_a_foreign_page_cannot_use_the_certificate_of_a_browser(tmp_path: Path, header: bytes) -> None:
    async with open_edge() as edge:
        listener = await serve_tls(edge, tmp_path)
        context = client_context(tmp_path, pki.user_leaf("alice"))
        stream = TlsStream(await edge.dial(listener), context, server_hostname="localhost")
        await stream.do_handshake()
        await stream.send_all(
            b"GET /api/v1/nodes HTTP/1.1\r\nHost: localhost:7002\r\n" + header + b"\r\n\r\n"
        )
        answer = await receive_until(stream, b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 a page of another site asked for this")


@pytest.mark.parametrize("leaf", [None, lambda: pki.node_leaf("edge1")])
async def test_a_refused_connection_is_not_left_to_the_garbage_collector(
    tmp_path: Path, leaf: object, without_collector: None
) -> None:
    """Otherwise a fleet that is refused, or that renews, would stop the server for tens of milliseconds."""
    async with open_edge() as edge:
        listener = await serve_tls(edge, tmp_path)
        context = client_context(tmp_path, leaf() if callable(leaf) else None)
        before = len(_http_connections())  # other tests' reports keep some
        async with TlsStream(await edge.dial(listener), context, server_hostname="localhost") as stream:
            await stream.do_handshake()
            await stream.send_all(CONNECT)
            assert (await receive_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 40")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(_http_connections()) == before


def _http_connections() -> list[HttpConnection]:
    return [found for found in gc.get_objects() if isinstance(found, HttpConnection)]


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_tls_1_2_only_where_the_configuration_allows_it(tmp_path: Path) -> None:
    async with open_edge() as edge:
        edge.attach("edge1", echo)
        context = client_context(tmp_path, pki.user_leaf("alice"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert b"protocol version" in await ask(edge, await serve_tls(edge, tmp_path), context)
        await trio.testing.wait_all_tasks_blocked()
        assert edge.counters.unauthenticated_refusals == {("https", "tls_too_old"): 1}
        old = await serve_tls(edge, tmp_path, min_version="1.2")
        assert (await ask(edge, old, context)).startswith(b"HTTP/1.1 200 ")


async def test_a_silent_client_is_dropped_at_the_deadline(tmp_path: Path) -> None:
    async with open_edge() as edge:
        stream = await edge.dial(await serve_tls(edge, tmp_path, seconds=0.05))
        assert await stream.receive_some() == b""
        assert edge.counters.unauthenticated_refusals == {("https", "handshake_failed"): 1}


@pytest.mark.parametrize("ends", ["close", "reset"])
async def test_a_client_that_leaves_before_it_sends_a_byte_failed_at_nothing(
    tmp_path: Path, ends: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_edge() as edge:
        listener = await serve_tls(edge, tmp_path)
        stream = await edge.dial(listener)
        if ends == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        stream = await edge.dial(listener)
        await stream.send_all(b"\x16\x03\x01")  # the first bytes of a handshake
        await stream.send_eof()
        await receive_all(stream)
        assert edge.counters.unauthenticated_refusals == {("https", "handshake_failed"): 1}
        assert len([record for record in caplog.records if record.name == "qanat.refusals"]) == 1


async def test_garbage_is_no_handshake(tmp_path: Path) -> None:
    async with open_edge() as edge:
        stream = await edge.dial(await serve_tls(edge, tmp_path))
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        await receive_all(stream)
        assert edge.counters.unauthenticated_refusals == {("https", "handshake_failed"): 1}


async def test_certificates_are_reloaded_for_new_connections(tmp_path: Path) -> None:
    files = tls_files(tmp_path)
    contexts = TlsContexts(files)
    before = contexts.current
    contexts.reload()
    assert contexts.current is not before
    kept = contexts.current
    files.key_file.write_bytes(b"no key")
    with pytest.raises(ssl.SSLError):
        contexts.reload()
    assert contexts.current is kept


async def ask_unix(path: Path) -> bytes:
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(CONNECT)
        return await receive_until(stream, b"\r\n\r\n")


async def serve_unix(edge: Edge, path: Path, identify: Identify) -> Listener:
    listener = listen_unix(
        "connect", UnixAddress(path), Admission(9, 9, clock=trio.current_time), edge.records
    )
    await edge.nursery.start(listener.serve, https_entrance(edge, identify).serve)
    return listener


async def test_the_peer_of_a_unix_socket_has_the_name_that_is_configured(tmp_path: Path) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        path = tmp_path / "connect.sock"
        await serve_unix(edge, path, identify_by_peer({os.getuid(): "kube-apiserver"}, "test.internal"))
        assert (await ask_unix(path)).startswith(b"HTTP/1.1 200 ")
        assert session.streams[0].user == "kube-apiserver"


async def test_an_unknown_peer_gets_the_line_to_add(tmp_path: Path) -> None:
    async with open_edge() as edge:
        edge.attach("edge1", echo)
        path = tmp_path / "connect.sock"
        await serve_unix(edge, path, identify_by_peer({}, "test.internal"))
        answer = await ask_unix(path)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert f'[[connect.unix.peer]] uid = {os.getuid()}, user = "NAME"'.encode() in answer


async def test_the_admin_socket_names_people_by_user_id(tmp_path: Path) -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        path = tmp_path / "admin.sock"
        await serve_unix(edge, path, identify_by_file_mode("test.internal"))
        await ask_unix(path)
        assert session.streams[0].user == f"uid-{os.getuid()}"
