"""A real agent alone at its edge, with a bundle of the tests' own authority, and a rogue server beside it.

The agent may dial only the echo at ``edge.echo``.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.rogues.server import RogueServer, rogue_server
from tests.support.net.listening import echo, listening
from tests.support.net.one_machine import unused_address
from tests.support.pki.authority import node_leaf, server_leaf, write_node_bundle
from tests.support.processes import tools
from tests.support.processes.processes import Process
from tests.support.processes.programs import parse_metrics
from tests.support.processes.toml_text import to_toml

NODE = "edge1"
_OPS_PORT = 7005


class Edge:
    """The agent, as ``process``; ``server`` is the rogue one that it attaches to."""

    def __init__(self, folder: Path, server: RogueServer, echo_address: str, *servers: str) -> None:
        self.server = server
        self.echo = echo_address
        self._ops = f"{unused_address()}:{_OPS_PORT}"
        bundle = write_node_bundle(folder / "node.pem", NODE)
        config = folder / "agent.toml"
        table = {
            "servers": list(servers) or [server.address],
            "bundle_file": str(bundle),
            "allow": [echo_address],
            "ops": {"listen": self._ops},
            "log": {"level": "info", "format": "text"},
            "session": {"retry_max_seconds": 1},
        }
        config.write_text(to_toml(table))
        command = [tools.program("qanat-agent"), "run", "--config", str(config)]
        self.process = Process("agent", command, folder)

    async def log_of(self, pattern: str, *, since: int | None = None) -> str:
        """Wait for ``pattern`` in the agent's log and return the text that matches."""
        found = await trio.to_thread.run_sync(lambda: self.process.wait_log(pattern, since=since))
        return found[0]

    async def metrics(self) -> dict[str, float]:
        """The agent's metrics."""
        return parse_metrics(await trio.to_thread.run_sync(self._get, "/metrics"))

    async def answer_seconds(self) -> float:
        """How long the agent's event loop takes to answer a probe."""
        return await trio.to_thread.run_sync(self._time_probe)

    def _time_probe(self) -> float:
        began = time.perf_counter()
        self._get("/healthz")
        return time.perf_counter() - began

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self._ops}{path}", timeout=30) as answer:
            text: str = answer.read().decode()
            return text


@asynccontextmanager
async def open_edge(
    folder: Path, prepare: Callable[[RogueServer], None] | None = None
) -> AsyncIterator[Edge]:
    """The agent runs until the end of the block. ``prepare`` has the server before the agent starts."""
    leaf, node = server_leaf(), node_leaf(NODE)
    tls = {"key_pem": leaf.credential.key_pem, "chain_pem": leaf.chain_pem, "roots_pem": node.roots_pem}
    async with listening(echo) as address, rogue_server(**tls) as server:
        if prepare is not None:
            prepare(server)
        edge = Edge(folder, server, address)
        edge.process.start()
        try:
            yield edge
        finally:
            edge.process.kill()
