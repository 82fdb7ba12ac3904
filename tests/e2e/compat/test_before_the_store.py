"""An installation from before the store: it starts, works as it did, and has what came since."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from certs.bundle import read_bundle
from certs.ca import Leaf
from certs.x509 import Credential, facts_of
from tests.server.admin.test_running import qanat_server
from tests.server.test_process import DEADLINE_SECONDS, say
from tests.support.net.listening import echo, listening
from tests.support.processes import tools
from tests.support.processes.before_the_store import Before, is_known
from tests.support.processes.servers import AGENT, ANYWHERE, Program, Site, running, tcp_port

pytestmark = pytest.mark.skipif(
    not is_known(), reason=f"{tools.SHALLOW}: needs git and the history of the repository"
)


class Installation:
    """Made by the code of before, in ``folder``, with a tcp port of the server that leads to ``target``."""

    def __init__(self, folder: Path, target: str) -> None:
        self.before = Before(folder / "code")
        self.data = folder / "data"
        self.before.run("tunnel_server", "init", "--name", "localhost", "--data-dir", str(self.data))
        self.site = Site(self.data)
        text = self.site.config.read_text()
        text = re.sub(r'"[^"]*:700[123]"', f'"{ANYWHERE}"', text).replace('"127.0.0.1:7004"', f'"{ANYWHERE}"')
        self.site.config.write_text(f"{text}\n{tcp_port(target)}")
        self.node = folder / "edge1" / "node.pem"
        self.node.parent.mkdir()
        self.before.run(
            *("tunnel_server", "issue", "node", "edge1", "--out", str(self.node)),
            *("--config", str(self.site.config)),
        )
        self.target = target
        self.files = {path: path.read_bytes() for path in self.data.rglob("*") if path.is_file()}

    def agent(self, program: list[str]) -> list[str]:
        config = self.node.parent / "agent.toml"
        port = self.site.ready["agents"].rpartition(":")[2]
        servers = f'servers = ["localhost:{port}"]\n'
        config.write_text(f'{servers}allow = ["{self.target}"]\n[ops]\nlisten = "{ANYWHERE}"\n')
        return [*program, "run", "--config", str(config)]

    @property
    def operator(self) -> Leaf:
        bundle = read_bundle(self.data / "operator.pem")
        return Leaf(Credential(bundle.chain_pem, bundle.key_pem), bundle.chain_pem, bundle.roots_pem)


@asynccontextmanager
async def upgraded(folder: Path) -> AsyncIterator[tuple[Installation, Program]]:
    """The server of today on the files of before."""
    with trio.fail_after(DEADLINE_SECONDS * 2):
        async with listening(echo) as target:
            installation = await trio.to_thread.run_sync(Installation, folder, target)
            assert not (installation.data / "store.db").exists()
            operator = ("--user", "operator", "--verb", "api", "--node", "*")
            code, output = await qanat_server(installation.site, "grant", "add", *operator)
            assert code == 0, output
            async with installation.site.server() as server:
                yield installation, server


async def test_agents_and_users_of_before_go_on_as_they_did(tmp_path: Path) -> None:
    async with upgraded(tmp_path) as (old, server):
        agent_of_before = old.agent(old.before.command("tunnel_agent"))
        async with running(agent_of_before) as agent:
            await server.line("node edge1 attached")
            await say(await old.site.through(), b"through an agent of before")
            status, _, body = await old.site.ask("GET /api/v1/nodes", old.operator)
            assert (status, [node["name"] for node in json.loads(body)["nodes"]]) == (200, ["edge1"])
            assert await old.site.page("/readyz") == (200, "ready\n")
            assert agent.stray == server.stray == []
        said = len(server.lines)
        async with running(old.agent(AGENT)) as agent:
            await server.line("node edge1 attached", after=said)
            await say(await old.site.through(), b"through an agent of today")
            assert agent.stray == []
        changed = {path.name for path, content in old.files.items() if path.read_bytes() != content}
        assert changed == set()
        assert (old.data / "store.db").stat().st_mode & 0o777 == 0o600


async def test_what_came_since_works_on_it(tmp_path: Path) -> None:
    async with upgraded(tmp_path) as (old, server):
        code, said = await qanat_server(old.site, "ca", "show", "--json")
        assert (code, json.loads(said)["state"]) == (0, "steady")
        assert (await qanat_server(old.site, "token", "create", "--node", "shop-7"))[0] == 0
        async with running(old.agent(old.before.command("tunnel_agent"))) as agent:
            await server.line("node edge1 attached")
            stream = await old.site.through()
            await say(stream, b"hello")
            serial = facts_of(read_bundle(old.node).chain_pem).serial  # which the store has never seen
            assert (await qanat_server(old.site, "cert", "revoke", serial, "--yes"))[0] == 0
            with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await server.line("attach of node edge1 failed", reason="revoked")
            await agent.line("cannot attach")
        code, said = await qanat_server(old.site, "user", "revoke", "operator", "--yes")
        assert (code, "add --force" in said) == (1, True)  # issued before there was a store
        assert (await qanat_server(old.site, "user", "revoke", "operator", "--yes", "--force"))[0] == 0
        status, _, _ = await old.site.ask("GET /api/v1/nodes", old.operator)
        assert status == 403


async def test_a_whole_rotation_begins_on_it(tmp_path: Path) -> None:
    """What was issued before the store is known only as long as it is in use."""
    async with upgraded(tmp_path) as (old, server):
        async with running(old.agent(AGENT)) as agent:
            await server.line("node edge1 attached")
            stream = await old.site.through()
            await say(stream, b"before")
            assert (await qanat_server(old.site, "ca", "rotate", "add"))[0] == 0
            code, said = await qanat_server(old.site, "ca", "rotate", "switch")
            assert code == 3 and "node edge1" in said
            await say(stream, b"after")
            agent.signal(signal.SIGTERM)
            await stream.aclose()
        async with running(old.agent(AGENT)) as agent:
            await agent.line("the server sent other roots")
