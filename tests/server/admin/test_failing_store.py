"""A store that cannot be written: sessions and streams continue, and the server refuses writing requests."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
import trio

from tests.server.test_process import attached, say
from tests.support.pki import authority as pki
from tests.support.processes.servers import Program, Site, running
from tunnel_core.reasons import Refused
from tunnel_server.commands.server_client import ask_server


def let_files_grow(program: Program, *, may: bool) -> None:
    """Simulate a full disk: no file may grow. The log goes to a pipe."""
    limit = resource.RLIM_INFINITY if may else 1
    resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


async def revoke(site: Site, act: str, name: str) -> None:
    """Raises ``Refused``."""
    await ask_server(site.folder / "admin.sock", "POST", act, {"name": name, "force": True})


async def until_ready(site: Site, answer: str) -> None:
    while True:
        if (await site.page("/readyz"))[1] == answer:
            return
        await trio.sleep(0.05)


@pytest.mark.parametrize("on_failure", ["drop", "refuse"])
async def test_the_data_path_goes_on_without_the_store(tmp_path: Path, on_failure: str) -> None:
    extra = f'[audit]\non_failure = "{on_failure}"\n'
    async with attached(tmp_path, extra) as (site, server, agent):
        stream = await site.through()
        await say(stream, b"before")
        let_files_grow(server, may=False)
        with pytest.raises(Refused, match="cannot be"):  # what is not on the disk has not happened
            await revoke(site, "nodes/revoke", "shop-7")
        await say(stream, b"meanwhile")
        await say(await site.through(), b"and a new one")
        agent.signal(signal.SIGKILL)
        await agent.exit_code()
        line_count = len(server.lines)
        async with running(agent.process.args):  # type: ignore[arg-type]
            await server.line("node edge1 attached", after=line_count)
            again = await site.through()
            await say(again, b"by an agent that attached meanwhile")
            await until_ready(site, "degraded\n")
            let_files_grow(server, may=True)
            await revoke(site, "nodes/revoke", "shop-7")
            await say(again, b"and after")
            if (await site.page("/metrics"))[1].find("qanat_audit_dropped_total 0.0") >= 0:
                await until_ready(site, "ready\n")  # no line of the audit was lost
        assert server.stray == []


async def test_a_store_that_works_again_is_noticed_by_itself(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, server, _):
        let_files_grow(server, may=False)
        with pytest.raises(Refused, match="cannot be"):
            await revoke(site, "users/revoke", "kim")
        assert await site.page("/readyz") == (200, "degraded\n")
        let_files_grow(server, may=True)
        await until_ready(site, "ready\n")


async def test_lines_of_the_audit_that_a_full_disk_lost_are_counted(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, server, _):
        let_files_grow(server, may=False)
        assert (await site.ask("GET /api/v1/version", pki.node_leaf("edge1")))[0] == 403
        await server.line("cannot be")
        assert await site.page("/readyz") == (200, "degraded\n")
        assert "qanat_audit_dropped_total 1.0" in (await site.page("/metrics"))[1]


async def test_events_of_nodes_outlive_the_server(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, server, _):
        server.signal(signal.SIGTERM)
        await server.exit_code()
        async with site.server():
            status, _, body = await site.ask("GET /api/v1/events?node=edge1")
            kinds = [event["kind"] for event in json.loads(body)["events"]]
            assert (status, kinds[:2]) == (200, ["attached", "ended"])
