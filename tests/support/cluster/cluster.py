"""The Kubernetes bed with a Qanat server in its cloud and Qanat agents on its nodes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.cluster.kube import CLOUD_ADDRESS, Bed, find_bed
from tests.support.net.namespaces import Namespace
from tests.support.processes.programs import Agent, Server

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
        """Make the pods with ``verify.sh``. The other results of ``verify.sh`` are not checked."""
        if self.bed.kubectl("get", "pod", "web1", "web2").returncode:
            self.bed.script("verify.sh", *map(str, NODES), deadline_seconds=300)
        done = self.bed.kubectl("wait", "--for=condition=Ready", "--timeout=50s", "pod/web1", "pod/web2")
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def running_cluster(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    make_server: Callable[[Path, Namespace, str], Server] = Server,
    make_agent: Callable[[str, Path, Namespace], Agent] = Agent,
) -> Iterator[Cluster]:
    """Run a cluster with an agent on each node. ``changes`` change server.toml.

    The API server connects over the unix socket.
    """
    bed = find_bed()
    try:
        bed.up("http-uds")
        server = make_server(folder / "cloud", bed.cloud, CLOUD_ADDRESS)
        agents = {n: make_agent(f"edge{n}", folder / f"edge{n}", bed.edge(n)) for n in NODES}
        made = Cluster(bed, server, agents)
        _install(made, folder, changes or {})
        try:
            made.server.start()
            made.attach(*NODES)
            yield made
        finally:
            for program in (made.server, *made.agents.values()):
                program.process.kill()
    finally:
        bed.down()


def _install(made: Cluster, folder: Path, changes: Mapping[str, Any]) -> None:
    peer = {"uid": 0, "user": "kube-apiserver"}
    made.server.initialise(
        {
            "https": {"listen": [f"{CLOUD_ADDRESS}:7002", "127.0.0.1:8131"]},
            "connect": {"unix": {"path": str(made.bed.work / "egress.sock"), "peer": [peer]}},
            **changes,
        }
    )
    made.server.issue_user_pem("kube-apiserver", folder / "pem")
    for file, wanted in (
        ("ca.pem", "egress-ca.crt"),
        ("cert.pem", "egress-client.crt"),
        ("key.pem", "egress-client.key"),
    ):
        shutil.copy(folder / "pem" / file, made.bed.work / "pki" / wanted)
    for agent in made.agents.values():
        made.server.issue_node(agent.node, agent.bundle)
        agent.configure(made.server, allow=[KUBELET], drain_seconds=1)
