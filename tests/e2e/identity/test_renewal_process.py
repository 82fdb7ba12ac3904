"""A real agent with certificates of seconds: open streams stay open, and an agent that cannot renew ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from certs.bundle import read_bundle
from certs.validity import validity_of
from tests.support.net.dialling import dial
from tests.support.net.listening import echo, listening
from tests.support.processes.cloud import Cloud, Machine, machine, open_cloud
from tests.support.processes.servers import Program, running

LIFE_SECONDS = 8
DEADLINE_SECONDS = 90


@asynccontextmanager
async def joined_agent(cloud: Cloud, edge: Machine, *options: str) -> AsyncIterator[Program]:
    joined = await edge.join(cloud.https, await cloud.token("edge1"), "--name", "edge1", *options)
    assert joined.code == 0, joined
    with edge.config.open("a") as config:
        config.write('\n[ops]\nlisten = "127.0.0.1:0"\n')
    async with running(edge.command("run")) as agent:
        await agent.line("attached to")
        yield agent


async def test_a_stream_outlives_the_certificates_under_it(tmp_path: Path) -> None:
    async with listening(echo) as target:
        extra = f'\n[[tcp]]\nlisten = "127.0.0.1:0"\nnode = "edge1"\ntarget = "{target}"\n'
        with (
            trio.fail_after(DEADLINE_SECONDS),
            open_cloud(tmp_path, extra, node_life_seconds=LIFE_SECONDS) as cloud,
        ):
            edge = machine(tmp_path)
            async with joined_agent(cloud, edge, "--allow", target) as agent:
                host, _, port = cloud.ready["tcp"].rpartition(":")
                stream = await dial(host, int(port))
                first, renewals, sent = validity_of(read_bundle(edge.bundle).chain_pem), 0, 0
                while renewals < 2 or validity_of(read_bundle(edge.bundle).chain_pem).ends == first.ends:
                    await stream.send_all(b"%04d" % sent)
                    assert await exactly(stream, 4) == b"%04d" % sent
                    sent += 1
                    await trio.sleep(0.05)
                    renewals = sum("renewed the certificate" in line["message"] for line in agent.lines)
                # The session is older now than any certificate may be.
                assert not [line for line in agent.lines if line["level"] in ("warning", "error")]
                stream.socket.close()
                output = cloud.log()
                assert "resumed its session" in output and "was lost" not in output
            nodes = (await cloud.act("GET", "certificates", name="edge1", role="node", ended="1"))[
                "certificates"
            ]
            assert [one["origin"] for one in nodes][:3] == ["enrolled", "renewed", "renewed"]


async def exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stream.receive_some(count - len(data))
        assert piece, "the stream ended"
        data += piece
    return data


async def test_a_revoked_node_is_not_renewed_and_ends_and_a_new_token_brings_it_back(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_SECONDS), open_cloud(tmp_path, node_life_seconds=LIFE_SECONDS) as cloud:
        edge = machine(tmp_path)
        async with joined_agent(cloud, edge) as agent:
            await cloud.act("POST", "nodes/revoke", name="edge1")
            await agent.line("the certificate was not renewed", reason="revoked")
            line = await agent.line("ended:")
            assert line["reason"] in ("revoked", "certificate_expired")
            assert "join again" in line["message"] and "next attempt in 300 s" in line["message"]
            line_count = len(agent.lines)
            again = await edge.join(cloud.https, await cloud.token("edge1"), "--name", "edge1", "--again")
            assert again.code == 0, again
            await agent.line("loaded another certificate", after=line_count)
            await agent.line("attached to", after=line_count)


def put_behind_a_link(file: Path) -> Path:
    """Move the file, and put a symbolic link to it in its place."""
    real = file.parent.parent / "elsewhere" / "kept.pem"
    real.parent.mkdir()
    file.rename(real)
    file.symlink_to(real)
    return real


@pytest.mark.parametrize("linked", [False, True])
async def test_the_agent_uses_a_renewal_by_hand(tmp_path: Path, linked: bool) -> None:
    with trio.fail_after(DEADLINE_SECONDS), open_cloud(tmp_path) as cloud:
        edge = machine(tmp_path)
        async with joined_agent(cloud, edge) as agent:
            before = read_bundle(edge.bundle)
            real = put_behind_a_link(edge.bundle) if linked else edge.bundle
            ran = await edge.run("renew")
            assert ran.returncode == 0, ran.stderr
            after = read_bundle(edge.bundle)
            assert after.key_pem != before.key_pem and after.agents == before.agents
            assert edge.bundle.is_symlink() is linked and read_bundle(real) == after
            assert f"{after.identity} is valid until" in ran.stdout.decode()
            await agent.line("loaded another certificate")
            await agent.line("resumed the session")
