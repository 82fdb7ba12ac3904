"""Revoking beside a running server: a second is all that anybody has left, and a restart changes nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import trio

from certs.x509 import facts_of
from tests.admin.test_running import qanat_server
from tests.fakes import pki
from tests.server.programs import Site
from tests.server.test_process import attached, say
from tunnel_core.identity import Role

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
        assert (await qanat_server(site, "node", "revoke", "edge1", "--why", "stolen"))[0] == 0
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
            _, said = await qanat_server(site, "audit", "--node", "edge1", "--json")
            kinds = [(line["kind"], line.get("reason")) for line in json.loads(said)["audit"]]
            assert kinds[:3] == [("revoked", None), ("ended", "revoked"), ("refused", "revoked")]
            _, said = await qanat_server(site, "audit", "--node", "edge1", "--kind", "refused", "--json")
            line = json.loads(said)["audit"][-1]
            assert line["serial"] == facts_of(pki.bundle_of(Role.NODE, "edge1").chain_pem).serial


async def test_a_revoked_user_is_out_within_a_second(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, server, _):
        mine, idle = await tunnelled(site, echo_of(site)), await site.tls("https")
        await idle.send_all(b"GET /api/v1/version HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await idle.receive_some()).startswith(b"HTTP/1.1 200 ")
        code, said = await qanat_server(
            site, "cert", "revoke", facts_of(pki.user_leaf("kim").chain_pem).serial
        )
        assert code == 0, said
        with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
            await mine.receive_some()
        await idle.send_all(b"GET /api/v1/version HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"\r\nqanat-reason: revoked\r\n" in (await idle.receive_some()).lower()
        status, phrase, _ = await site.ask("CONNECT edge1:22")
        assert (status, "revoked" in phrase) == (403, True)
        assert (await site.ask("GET /api/v1/version", pki.user_leaf("lee")))[0] == 200
        await server.line("1 sessions, streams or answers were ended")
