"""Requests to a server, over real TLS and over a socket, and everything that can prevent them."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support.fakes.scripted_server import fake_server, fake_unix_server
from tests.support.pki.authority import (
    authority,
    expired_leaf,
    server_context,
    server_leaf,
    write_user_bundle,
)
from tunnel_client.access import find_access
from tunnel_client.api import ask, ask_nodes
from tunnel_client.dial import Dialer, ServerUnreachable, UnixDialer
from tunnel_core.cli.command_line import printable
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused


def dialer_to(tmp_path: Path, *addresses: str, trust_domain: str = "test.internal") -> Dialer:
    bundle = write_user_bundle(tmp_path / "kim.pem", "kim", *addresses, trust_domain=trust_domain)
    return find_access(bundle, {}).need_api()


async def refusal(dialer: Dialer, page: str = "nodes") -> Refused:
    with pytest.raises(Refused) as caught:
        await ask(dialer, page)
    return caught.value


async def unreachable(dialer: Dialer) -> str:
    with pytest.raises(ServerUnreachable) as caught:
        await ask(dialer, "nodes")
    return str(caught.value)


async def test_a_page_comes_over_mutual_tls(tmp_path: Path) -> None:
    async with fake_server(tmp_path) as server:
        server.pages["nodes"] = {"nodes": []}
        assert await ask(dialer_to(tmp_path, server.address), "nodes") == {"nodes": []}
        assert server.users == ["kim"]


async def test_an_address_works_as_a_name_too(tmp_path: Path) -> None:
    async with fake_server(tmp_path) as server:
        server.pages["nodes"] = {}
        assert await ask(dialer_to(tmp_path, f"127.0.0.1:{server.port}"), "nodes") == {}


async def test_a_page_comes_over_a_socket(tmp_path: Path) -> None:
    async with fake_unix_server(tmp_path / "s") as server:
        server.pages["version"] = {"version": "1"}
        assert await ask(UnixDialer(tmp_path / "s"), "version") == {"version": "1"}


async def test_a_refusal_keeps_reason_and_sentence(tmp_path: Path) -> None:
    async with fake_server(tmp_path) as server:
        refused = await refusal(dialer_to(tmp_path, server.address), "other")
    assert (refused.reason, refused.detail) == (Reason.NOT_FOUND, "there is no such page")


@pytest.mark.parametrize("body", [b"hello", b"[1]", b"\xff"])
async def test_an_answer_that_is_no_object_is_no_server_of_ours(tmp_path: Path, body: bytes) -> None:
    async with fake_server(tmp_path) as server:
        server.pages["nodes"] = body
        refused = await refusal(dialer_to(tmp_path, server.address))
    assert refused.reason is Reason.TARGET_PROTOCOL
    assert "is it a Qanat server?" in refused.detail


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_the_first_address_that_answers_is_taken(tmp_path: Path) -> None:
    async with fake_server(tmp_path) as server:
        server.pages["nodes"] = {}
        dialer = dialer_to(tmp_path, f"localhost:{unused_port()}", "no-such-name.invalid:1", server.address)
        assert await ask(dialer, "nodes") == {}


async def test_every_address_that_failed_is_named_with_its_cause(tmp_path: Path) -> None:
    port = unused_port()
    message = await unreachable(dialer_to(tmp_path, f"localhost:{port}", "no-such-name.invalid:1"))
    assert f"localhost:{port} cannot be reached: Connection refused" in message
    assert "no-such-name.invalid:1 cannot be reached: " in message
    assert message.endswith(
        "On the server: qanat-server service status, or without a service qanat-server run"
    )


async def test_a_name_without_an_address_points_at_the_name(tmp_path: Path) -> None:
    message = await unreachable(dialer_to(tmp_path, "no-such-name.invalid:1"))
    assert "Does the name have an address, in DNS or in this machine's /etc/hosts?" in message
    assert "Does the server run" not in message


async def test_a_missing_socket_is_named(tmp_path: Path) -> None:
    message = await unreachable(UnixDialer(tmp_path / "none"))
    assert message == f"{tmp_path / 'none'} cannot be opened: No such file or directory"


async def test_a_server_of_another_authority_is_not_trusted(tmp_path: Path) -> None:
    async with fake_server(tmp_path) as server:
        server.pages["nodes"] = {}
        message = await unreachable(dialer_to(tmp_path, server.address, trust_domain="other.example"))
    assert "is it the server that issued your bundle?" in message


async def test_an_expired_server_certificate_is_reported(tmp_path: Path) -> None:
    context = server_context(tmp_path, expired_leaf(Role.SERVER, "main"))
    async with fake_server(tmp_path, context=context) as server:
        message = await unreachable(dialer_to(tmp_path, server.address))
    assert "certificate has expired (is this machine's clock right?" in message


async def test_a_server_certificate_of_the_future_points_at_the_clock(tmp_path: Path) -> None:
    later = datetime.now(UTC) + timedelta(days=3)
    leaf = authority().issue(Role.SERVER, "main", names=("localhost",), now=later)
    async with fake_server(tmp_path, context=server_context(tmp_path, leaf)) as server:
        message = await unreachable(dialer_to(tmp_path, server.address))
    assert message.endswith("(is this machine's clock right?)")


async def test_a_name_that_is_not_in_the_certificate_is_reported(tmp_path: Path) -> None:
    leaf = authority().issue(Role.SERVER, "main", names=("tunnel.example.com",))
    async with fake_server(tmp_path, context=server_context(tmp_path, leaf)) as server:
        message = await unreachable(dialer_to(tmp_path, server.address))
    assert "the server's certificate is for other names" in message
    assert "is it the server that issued" not in message


async def test_a_server_called_otherwise_is_not_trusted(tmp_path: Path) -> None:
    leaf = server_leaf()
    async with fake_server(tmp_path, context=server_context(tmp_path, leaf)) as server:
        message = await unreachable(dialer_to(tmp_path, f"127.0.0.2:{server.port}"))
    assert "127.0.0.2" in message  # not bound there, or not in the certificate


async def test_a_client_certificate_that_is_not_trusted_is_reported(tmp_path: Path) -> None:
    other = server_context(tmp_path)
    other.load_verify_locations(cadata=server_leaf("main", "other.example").roots_pem.decode())
    strict = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    strict.load_cert_chain(tmp_path / "server-test.pem")
    strict.verify_mode = ssl.CERT_REQUIRED
    strict.load_verify_locations(cadata=server_leaf("main", "other.example").roots_pem.decode())
    async with fake_server(tmp_path, context=strict) as server:
        refused = await refusal(dialer_to(tmp_path, server.address))
    assert refused.reason is Reason.UNAUTHENTICATED
    assert "refused the bundle's certificate" in refused.detail


async def test_tls_that_is_too_old_is_refused(tmp_path: Path) -> None:
    context = server_context(tmp_path)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with fake_server(tmp_path, context=context) as server:
        message = await unreachable(dialer_to(tmp_path, server.address))
    assert "protocol version" in message


async def test_a_port_without_tls_is_reported(tmp_path: Path) -> None:
    async def garbage(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"SSH-2.0-hello\r\n")

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, garbage, [listener])
        port = listener.socket.getsockname()[1]
        message = await unreachable(dialer_to(tmp_path, f"localhost:{port}"))
        nursery.cancel_scope.cancel()
    assert "TLS handshake failed" in message


async def test_a_server_that_goes_silent_does_not_hold_us(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    class Silent:
        name = "the server"

        async def dial(self) -> trio.abc.HalfCloseableStream:
            here, _there = trio.testing.memory_stream_pair()
            self.there = _there
            return here

    assert "did not answer within 15 s" in await unreachable(Silent())


def test_text_of_other_programs_cannot_command_a_terminal() -> None:
    assert printable("edge\x1b[2J\n1\u202e é") == "edge?[2J?1? é"


async def test_all_nodes_are_collected_from_the_pages_of_a_server(tmp_path: Path) -> None:
    async with fake_server(tmp_path) as server:
        dialer = dialer_to(tmp_path, server.address)
        server.pages["nodes?limit=1000"] = {"nodes": [{"name": "a"}, {"name": "b"}], "next": "7:b"}
        server.pages["nodes?limit=1000&after=7%3Ab"] = {"nodes": [{"name": "c"}], "next": "7:c"}
        server.pages["nodes?limit=1000&after=7%3Ac"] = {"nodes": [{"name": "d"}]}
        assert await ask_nodes(dialer) == {"nodes": [{"name": name} for name in "abcd"]}


async def test_an_older_server_answers_with_all_nodes_at_once(tmp_path: Path) -> None:
    async with fake_server(tmp_path) as server:
        server.pages["nodes"] = {"nodes": [{"name": "a"}], "more": 1}
        assert await ask_nodes(dialer_to(tmp_path, server.address)) == {"nodes": [{"name": "a"}], "more": 1}


async def test_a_server_that_never_comes_to_an_end_is_left(tmp_path: Path) -> None:
    async with fake_server(tmp_path) as server:
        server.pages["nodes?limit=1000"] = server.pages["nodes?limit=1000&after=1"] = {
            "nodes": [{"name": "a"}],
            "next": "1",
        }
        with trio.fail_after(10):
            assert len((await ask_nodes(dialer_to(tmp_path, server.address)))["nodes"]) == 2
