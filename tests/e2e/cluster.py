"""The Kubernetes bed with our server in its cloud and our agents on its nodes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.kube import CLOUD_ADDRESS, Bed, find_bed
from tests.e2e.programs import Agent, Server

NODES = (1, 2)
KUBELET = "localhost:10250"


@dataclass
class Cluster:
    bed: Bed
    server: Server
    agents: dict[int, Agent]

    def attach(self, *nodes: int) -> None:
        for node in nodes:
            if not self.agents[node].process.running:
                self.agents[node].start()

    def make_pods(self) -> None:
        """``verify.sh`` makes the pods; one operation of it is enough here."""
        if self.bed.kubectl("get", "pod", "web1", "web2").returncode:
            self.bed.verify(*NODES)


@contextlib.contextmanager
def running_cluster(folder: Path, changes: Mapping[str, Any] | None = None) -> Iterator[Cluster]:
    """With an agent on each node; the API server comes in by the unix socket. ``changes``: server.toml."""
    bed = find_bed()
    try:
        bed.up("http-uds")
        made = _installed(bed, folder, changes or {})
        made.server.start()
        made.attach(*NODES)
        yield made
        for program in (made.server, *made.agents.values()):
            program.process.kill()
    finally:
        bed.down()


def _installed(bed: Bed, folder: Path, changes: Mapping[str, Any]) -> Cluster:
    server = Server(folder / "cloud", bed.cloud, CLOUD_ADDRESS)
    peer = {"uid": 0, "user": "kube-apiserver"}
    server.initialise(
        {
            "https": {"listen": [f"{CLOUD_ADDRESS}:7002", "127.0.0.1:8131"]},
            "connect": {"unix": {"path": str(bed.work / "egress.sock"), "peer": [peer]}},
            **changes,
        }
    )
    server.issue_user_pem("kube-apiserver", folder / "pem")
    for made, wanted in (
        ("ca.pem", "egress-ca.crt"),
        ("cert.pem", "egress-client.crt"),
        ("key.pem", "egress-client.key"),
    ):
        shutil.copy(folder / "pem" / made, bed.work / "pki" / wanted)
    return Cluster(bed, server, {number: _agent(bed, folder, server, number) for number in NODES})


def _agent(bed: Bed, folder: Path, server: Server, number: int) -> Agent:
    agent = Agent(f"edge{number}", folder / f"edge{number}", bed.edge(number))
    server.issue_node(agent.node, agent.bundle)
    agent.configure(server, allow=[KUBELET], drain_seconds=1)
    return agent
