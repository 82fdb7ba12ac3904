"""A restarted server knows its nodes, and shows earlier events."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import trio

from tests.client.test_commands import qanat
from tests.server.admin.test_revoking import get, page_of
from tests.server.admin.test_running import qanat_server
from tests.server.test_process import attached
from tests.support.pki.authority import write_user_bundle
from tests.support.processes.servers import Site
from tunnel_server.commands.server_client import ask_server


async def kinds_of(site: Site) -> list[tuple[str, str]]:
    events = json.loads((await site.ask("GET /api/v1/events"))[2])["events"]
    return [(event["kind"], event["node"]) for event in events]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_node_whose_agent_is_off_is_known_over_a_restart(tmp_path: Path, number: int) -> None:
    async with attached(tmp_path, drain_seconds="0.2") as (site, server, agent):
        await until_kept(site, "attached")
        server.signal(number)
        await server.exit_code()
        agent.signal(signal.SIGKILL)
        await agent.exit_code()
        async with site.server() as again:
            status, phrase, _ = await site.ask("CONNECT edge1:22")
            assert (status, phrase.startswith("node edge1 has no agent attached; last seen ")) == (503, True)
            assert " s ago" in phrase and "stopping" not in phrase
            assert await page_of(site.ready["web"], "status--edge1.localhost") == (503, "node_not_attached")
            index = await index_of(site.ready["web"])
            assert '<li class="gone">edge1 <small>not attached, last seen 20' in index
            with pytest.raises(trio.BrokenResourceError):
                await (await site.through()).receive_some()
            await again.line("stream refused", entrance="tcp", reason="node_not_attached")
            [node] = json.loads((await site.ask("GET /api/v1/nodes"))[2])["nodes"]
            assert (node["name"], node["state"], node["last_seen"][:2]) == ("edge1", "gone", "20")
            write_user_bundle(tmp_path / "kim.pem", "kim", site.ready["https"])
            assert "edge1" in (await qanat(tmp_path, "nodes")).stdout.decode()
            kinds = await kinds_of(site)
            clean = number == signal.SIGTERM
            assert kinds[:2] == [("server_started", ""), ("attached", "edge1")]
            assert kinds[-1] == ("server_started", "")
            assert (("server_stopped", "") in kinds, ("ended", "edge1") in kinds) == (clean, clean)
            output = (await qanat(tmp_path, "events")).stdout.decode()
            assert ("the run before was stopped at" in output) == clean
            assert ("ended without a stop" in output) != clean
            async with site.agent("localhost:1") as back:
                await again.line("node edge1 attached")
                code, output = await qanat_server(site, "node", "forget", "edge1")
                assert (code, "has an agent attached; stop that agent" in output) == (2, True)
                back.signal(signal.SIGTERM)
                await again.line("node edge1 detached")
            assert (await qanat_server(site, "node", "forget", "edge1"))[0] == 0
            assert (await site.ask("CONNECT edge1:22"))[0] == 404
            again.signal(signal.SIGTERM)
            await again.exit_code()
        async with site.server():
            assert json.loads((await site.ask("GET /api/v1/nodes"))[2]) == {"nodes": []}


async def index_of(listener: str) -> str:
    return (await get(listener, "localhost")).partition("\r\n\r\n")[2]


async def until_kept(site: Site, kind: str) -> None:
    """Waits until an event of this kind is in the store: the server puts it there every two seconds."""
    while True:
        events = (await ask_server(site.folder / "admin.sock", "GET", "events", {}))["events"]
        if any(event["kind"] == kind for event in events):
            return
        await trio.sleep(0.1)
