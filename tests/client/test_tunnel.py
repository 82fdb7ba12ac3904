"""Tunnels: the request to the server, the answer, and the message of a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.support.fakes.scripted_server import FakeServer, fake_server, fake_unix_server
from tests.support.pki.authority import write_user_bundle
from tunnel_client.access import find_access
from tunnel_client.dial import Dialer, UnixDialer
from tunnel_client.tunnel import TunnelRequest, open_tunnel
from tunnel_core.reasons import Reason, Refused


def dialer_to(server: FakeServer, tmp_path: Path) -> Dialer:
    bundle = write_user_bundle(tmp_path / "kim.pem", "kim", server.address)
    return find_access(bundle, {}).need_connect()


@pytest.mark.parametrize(
    ("target", "canonical", "authority"),
    [
        ("22", "localhost:22", "edge1:22"),
        ("LocalHost:22", "localhost:22", "edge1:22"),
        ("db.local:5432", "db.local:5432", "edge1:1"),
        ("127.0.0.1:80", "127.0.0.1:80", "edge1:1"),
        ("[::1]:80", "[::1]:80", "edge1:1"),
        ("unix:/run/docker.sock", "unix:/run/docker.sock", "edge1:1"),
        ("web", "web", "edge1:1"),
    ],
)
def test_every_form_of_target_is_asked_for(target: str, canonical: str, authority: str) -> None:
    request = TunnelRequest.parse("edge1", target)
    assert (str(request.target), request.authority) == (canonical, authority)


@pytest.mark.parametrize(
    ("node", "target"),
    [("Edge1", "22"), ("a b", "22"), ("edge1", "0"), ("edge1", "70000"), ("edge1", "::1:80"), ("edge1", "²")],
)
def test_other_forms_are_refused_before_anything_is_sent(node: str, target: str) -> None:
    with pytest.raises(ValueError, match=r"not a|no port"):
        TunnelRequest.parse(node, target)


async def test_bytes_go_both_ways_and_each_half_ends_by_itself(tmp_path: Path) -> None:
    async with fake_server(tmp_path) as server:
        async with open_tunnel(dialer_to(server, tmp_path), TunnelRequest.parse("edge1", "7")) as tunnel:
            await tunnel.stream.send_all(b"hello")
            assert await tunnel.stream.receive_some() == b"hello"
            await tunnel.stream.send_eof()
            assert await tunnel.stream.receive_some() == b""
        assert server.authorities == ["edge1:7"]


async def test_a_target_that_sends_first_loses_nothing(tmp_path: Path) -> None:
    async def greet(stream: trio.abc.HalfCloseableStream, first: bytes) -> None:
        await stream.send_all(b"SSH-2.0-x\r\n")

    async with fake_unix_server(tmp_path / "s") as server:
        server.targets["localhost:22"] = greet
        async with open_tunnel(UnixDialer(tmp_path / "s"), TunnelRequest.parse("edge1", "22")) as tunnel:
            got = tunnel.first_bytes
            async for chunk in tunnel.stream:
                got += chunk
    assert got == b"SSH-2.0-x\r\n"


async def test_a_refusal_keeps_reason_and_whole_sentence(tmp_path: Path) -> None:
    detail = "node edge1 refuses db.local:5432; add it to allow in /etc/qanat/agent.toml; " + "x" * 300
    async with fake_server(tmp_path) as server:
        server.targets["db.local:5432"] = Refused(Reason.TARGET_NOT_ALLOWED, detail)
        with pytest.raises(Refused) as caught:
            async with open_tunnel(
                dialer_to(server, tmp_path), TunnelRequest.parse("edge1", "db.local:5432")
            ):
                pass
    assert (caught.value.reason, caught.value.detail) == (Reason.TARGET_NOT_ALLOWED, detail)


async def raw_answer(tmp_path: Path, answer: bytes) -> Refused:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    path = tmp_path / "raw"
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(sock)])
        with pytest.raises(Refused) as caught:
            async with open_tunnel(UnixDialer(path), TunnelRequest.parse("edge1", "7")):
                pass
        nursery.cancel_scope.cancel()
    return caught.value


@pytest.mark.parametrize(
    ("answer", "reason", "sentence"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", Reason.TARGET_PROTOCOL, "a Qanat server?"),
        (
            b"HTTP/1.1 503 node edge1 has no agent\r\nQanat-Reason: node_not_attached\r\n\r\n",
            Reason.NODE_NOT_ATTACHED,
            "node edge1 has no agent",
        ),
        (
            b'HTTP/1.1 503 x\r\nContent-Length: 9999\r\n\r\n{"reason": "node_not_attached"',
            Reason.TARGET_PROTOCOL,
            "answered 503 x",
        ),
        (b"HTTP/1.1 404 x\r\nQanat-Reason: name\r\n\r\n", Reason.TARGET_PROTOCOL, "answered 404 x"),
        (b"SSH-2.0-hello\r\n\r\n", Reason.TARGET_PROTOCOL, "did not answer in HTTP"),
        (b"", Reason.TARGET_PROTOCOL, "without an answer"),
    ],
)
async def test_answers_of_other_servers_are_distinguished(
    tmp_path: Path, answer: bytes, reason: Reason, sentence: str
) -> None:
    refused = await raw_answer(tmp_path, answer)
    assert refused.reason is reason
    assert sentence in refused.detail
