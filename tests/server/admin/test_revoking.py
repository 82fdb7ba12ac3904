"""Revocation beside a running server: access ends within a second, and a restart changes nothing."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import trio

from certs.x509 import facts_of
from tests.server.admin.test_running import qanat_server
from tests.server.test_process import attached, say
from tests.support.pki import authority as pki
from tests.support.processes.servers import Site
from tunnel_core.identity import Role
from tunnel_server.commands.server_client import ask_server

CONNECT = b"CONNECT edge1:1 HTTP/1.1\r\nhost: x\r\nqanat-target: %b\r\n\r\n"


async def tunnelled(site: Site, target: str) -> trio.SSLStream[trio.SocketStream]:
    """Kim's connection through the tunnel to an echo."""
    stream = await site.tls("https")
    await stream.send_all(CONNECT % target.encode())
    assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
    await stream.send_all(b"hello")
    assert await stream.receive_some() == b"hello"
    return stream


def echo_of(site: Site) -> str:
    return site.extra.partition('target = "')[2].partition('"')[0]


async def test_a_revoked_node_is_out_within_a_second(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, server, agent):
        stream = await site.through()
        await say(stream, b"hello")
        began = trio.current_time()
        assert (await qanat_server(site, "node", "revoke", "edge1", "--yes", "--why", "stolen"))[0] == 0
        with pytest.raises(trio.BrokenResourceError):  # hard
            await stream.receive_some()
        ended = await agent.line("ended", reason="revoked")
        assert trio.current_time() - began < 3  # most of it is the command's own start
        assert (await server.line("stream closed"))["reason"] == "revoked"
        assert "was revoked" in ended["message"] and "join again" in ended["message"]
        assert agent.process.returncode is None
        server.signal(signal.SIGTERM)
        await server.exit_code()
        async with site.server(), site.agent("localhost:1") as again:
            await again.line("cannot attach", reason="revoked")
            _, output = await qanat_server(site, "audit", "--node", "edge1", "--json")
            kinds = [(line["kind"], line.get("reason")) for line in json.loads(output)["audit"]]
            assert kinds[:3] == [("revoked", None), ("ended", "revoked"), ("refused", "revoked")]
            _, output = await qanat_server(site, "audit", "--node", "edge1", "--kind", "refused", "--json")
            line = json.loads(output)["audit"][-1]
            assert line["serial"] == facts_of(pki.bundle_of(Role.NODE, "edge1").chain_pem).serial


async def test_a_revoked_user_is_out_within_a_second(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, server, _):
        mine, idle = await tunnelled(site, echo_of(site)), await site.tls("https")
        await idle.send_all(b"GET /api/v1/version HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await idle.receive_some()).startswith(b"HTTP/1.1 200 ")
        code, output = await qanat_server(
            site, "cert", "revoke", facts_of(pki.user_leaf("kim").chain_pem).serial, "--yes"
        )
        assert code == 0, output
        with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
            await mine.receive_some()
        await idle.send_all(b"GET /api/v1/version HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"\r\nqanat-reason: revoked\r\n" in (await idle.receive_some()).lower()
        status, phrase, _ = await site.ask("CONNECT edge1:22")
        assert (status, "revoked" in phrase) == (403, True)
        assert (await site.ask("GET /api/v1/version", pki.user_leaf("lee")))[0] == 200
        await server.line("1 session, stream or answer was ended")


async def test_a_revocation_shows_what_it_ends_and_asks_before_it_acts(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, _, agent):
        await tunnelled(site, echo_of(site))
        await say(await site.through(), b"hello")
        code, output = await qanat_server(site, "node", "revoke", "edge1")
        assert code == 2
        assert re.search(
            r"ends:\n  1 session: edge1 from 127.0.0.1:\d+\n  2 streams, of 127.0.0.1, kim\n", output
        )
        assert "there is no terminal for a question. Add --yes" in output
        code, output = await qanat_server(site, "user", "revoke", "kim", "--json")
        assert code == 2 and "--json asks no question. Add --yes" in json.loads(output)["detail"]
        assert await ask_server(tmp_path / "admin.sock", "GET", "revocations", {}) == {"revocations": []}
        await say(await site.through(), b"still there")
        code, output = await qanat_server(site, "node", "revoke", "edge1", "--yes", "--json")
        answer = json.loads(output)
        assert (code, answer["again"], answer["ended"]["streams"]) == (0, False, 3)
        await agent.line("ended", reason="revoked")
        code, output = await qanat_server(site, "node", "revoke", "edge1", "--yes")
        assert (code, "is revoked already, since" in output) == (0, True)
        assert len((await ask_server(tmp_path / "admin.sock", "GET", "revocations", {}))["revocations"]) == 1


@pytest.mark.parametrize(
    ("kind", "serial"),
    [("node", ""), ("cert", facts_of(pki.bundle_of(Role.NODE, "edge1").chain_pem).serial)],
    ids=["name", "serial"],
)
async def test_a_revocation_is_taken_back_while_the_server_runs(
    tmp_path: Path, kind: str, serial: str
) -> None:
    async with attached(tmp_path) as (site, server, agent):
        subject = serial or "edge1"
        assert (await qanat_server(site, kind, "revoke", subject, "--yes"))[0] == 0
        await agent.line("ended", reason="revoked")
        agent.signal(signal.SIGTERM)
        await agent.exit_code()
        code, output = await qanat_server(site, kind, "unrevoke", subject, "--yes")
        assert (code, "is no longer revoked" in output) == (0, True), output
        before = len(server.lines)
        async with site.agent("localhost:1"):
            await server.line("node edge1 attached", after=before)
        code, output = await qanat_server(site, kind, "unrevoke", subject, "--yes")
        assert (code, "is not revoked" in output) == (1, True)
        _, output = await qanat_server(site, "audit", "--json")
        kinds = [line["kind"] for line in json.loads(output)["audit"]]
        assert [kind for kind in kinds if kind.endswith("revoked")] == ["revoked", "unrevoked"]


async def test_a_revoked_node_is_reported_as_revoked_at_every_entrance(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, server, agent):
        assert (await qanat_server(site, "node", "revoke", "edge1", "--yes"))[0] == 0
        await agent.line("ended", reason="revoked")
        await server.line("node edge1 detached")
        status, phrase, _ = await site.ask("CONNECT edge1:22")
        assert (status, phrase.startswith("node edge1 was revoked")) == (403, True)
        web = site.ready["web"]
        assert await page_of(web, "status--edge1.localhost") == (403, "revoked")
        with pytest.raises(trio.BrokenResourceError):
            await (await site.through()).receive_some()
        await server.line("stream refused", entrance="tcp", reason="revoked")
        [node] = json.loads((await site.ask("GET /api/v1/nodes"))[2])["nodes"]
        assert (node["state"], node["revoked"]) == ("gone", True)


async def page_of(listener: str, host: str) -> tuple[int, str]:
    """Status and Qanat-Reason of a page of the web entrance."""
    head = (await get(listener, host)).partition("\r\n\r\n")[0].lower()
    return int(head.split()[1]), head.partition("qanat-reason: ")[2].partition("\r\n")[0]


async def get(listener: str, host: str) -> str:
    """The whole answer to a request for ``/`` of this host."""
    address, _, port = listener.rpartition(":")
    async with await trio.open_tcp_stream(address, int(port)) as stream:
        await stream.send_all(f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        return b"".join([piece async for piece in stream]).decode()
