"""Two real agents with one bundle on one machine, as two containers run them: they share the boot id."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from certs.bundle import write_bundle
from tests.support.pki import authority as pki
from tests.support.processes import servers as programs
from tests.support.processes.servers import AGENT, ANYWHERE, Program, Site, running
from tunnel_core.identity import Role

DEADLINE_SECONDS = 60
QUICK_SERVER = [
    *(sys.executable, "-c"),
    "from tunnel_server.nodes import registry as nodes; nodes.RETRY_SECONDS = 1.0\n"
    "from tunnel_server.entry import entry_point; entry_point()",
]
"""Time to retry for a refused agent: a second in place of a minute."""


@asynccontextmanager
async def agent_in(folder: Path, site: Site) -> AsyncIterator[Program]:
    """One more agent of edge1, with files of its own; it waits a third of 3 s after a takeover."""
    config = _write_agent(folder, site)
    async with running([*AGENT, "run", "--config", str(config)]) as program:
        yield program


def _write_agent(folder: Path, site: Site) -> Path:
    folder.mkdir(exist_ok=True)
    write_bundle(folder / "node.pem", pki.bundle_of(Role.NODE, "edge1", agents=(site.ready["agents"],)))
    config = folder / "agent.toml"
    config.write_text(
        f'allow = ["127.0.0.1:22"]\n[ops]\nlisten = "{ANYWHERE}"\n[session]\nretry_max_seconds = 3\n'
    )
    return config


async def test_two_agents_with_one_bundle_settle_until_one_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "SERVER", QUICK_SERVER)
    site = Site(tmp_path)
    site.write()
    with trio.fail_after(DEADLINE_SECONDS):
        async with site.server() as server, agent_in(tmp_path / "a", site) as first:
            await first.line("attached to")
            async with agent_in(tmp_path / "b", site) as second:
                await second.line("attached to")
                await first.line("another agent runs as edge1", reason="taken_over")
                refused = await first.line("cannot attach", reason="duplicate_node")
                assert "another agent on this machine, perhaps in a container" in refused["message"]
                await server.line("another agent on this machine", reason="duplicate_node")
                await first.line("cannot attach", after=len(first.lines), reason="duplicate_node")
                assert not [line for line in second.lines if line.get("reason") == "taken_over"]
                so_far = len(first.lines)
                second.signal(signal.SIGTERM)
                await first.line("attached to", after=so_far)


async def test_an_agent_that_is_killed_and_restarted_attaches_each_time(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write()
    with trio.fail_after(DEADLINE_SECONDS):
        async with site.server() as server:
            for _ in range(4):
                so_far = len(server.lines)
                async with agent_in(tmp_path / "a", site) as agent:
                    await server.line("node edge1 attached", after=so_far)
                    agent.signal(signal.SIGKILL)
            assert not [line for line in server.lines if line.get("reason") == "duplicate_node"]
