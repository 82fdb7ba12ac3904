"""A real API server reaches real kubelets through us: two nodes behind NAT with the SAME addresses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.kube import CLOUD_ADDRESS, Bed, find_bed
from tests.e2e.programs import Agent, Server
from tests.e2e.waiting import wait_until

NODES = (1, 2)
KUBELET = "localhost:10250"
# A node that the API server knows and we do not.
STRANGER = """
apiVersion: v1
kind: Node
metadata: {name: edge9}
status:
  addresses: [{type: Hostname, address: edge9}]
  daemonEndpoints: {kubeletEndpoint: {Port: 10250}}
"""
SENTENCE_SECONDS = 1.0


@dataclass
class Cluster:
    bed: Bed
    server: Server
    agents: dict[int, Agent]

    def attach(self, *nodes: int) -> None:
        for node in nodes:
            if not self.agents[node].process.running:
                self.agents[node].start()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    bed = find_bed()
    folder = tmp_path_factory.mktemp("kube")
    try:
        bed.up("http-uds")
        made = _installed(bed, folder)
        made.server.start()
        made.attach(*NODES)
        yield made
        for program in (made.server, *made.agents.values()):
            program.process.kill()
    finally:
        bed.down()


def _installed(bed: Bed, folder: Path) -> Cluster:
    server = Server(folder / "cloud", bed.cloud, CLOUD_ADDRESS)
    peer = {"uid": 0, "user": "kube-apiserver"}
    server.initialise(
        {
            "drain_seconds": 1,
            "https": {"listen": [f"{CLOUD_ADDRESS}:7002", "127.0.0.1:8131"]},
            "connect": {"unix": {"path": str(bed.work / "egress.sock"), "peer": [peer]}},
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


@pytest.fixture(scope="module", params=["http-uds", "http-tcp"])
def mode(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """How the API server comes in to us; its tests stand together, as each change is a restart."""
    cluster.bed.switch(request.param)
    return str(request.param)


@pytest.mark.usefixtures("mode")
def test_every_operation_works_on_both_nodes(cluster: Cluster) -> None:
    cluster.attach(*NODES)
    cluster.bed.verify(*NODES)


@pytest.mark.usefixtures("mode")
def test_kubectl_says_that_a_node_is_unknown(cluster: Cluster) -> None:
    cluster.bed.kubectl("create", "--validate=false", "-f", "-", stdin=STRANGER)
    try:
        said = _refusal(cluster, "get", "--raw", "/api/v1/nodes/edge9/proxy/metrics")
    finally:
        cluster.bed.kubectl("delete", "node", "edge9")
    assert "404" in said
    assert "edge9" in said
    assert "no node edge9 is known" in said


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize(
    "operation",
    [("logs", "web2", "-c", "web"), ("exec", "web2", "-c", "web", "--", "true")],
    ids=["logs", "exec"],
)
def test_kubectl_says_that_an_agent_is_gone(cluster: Cluster, operation: tuple[str, ...]) -> None:
    cluster.attach(*NODES)
    _make_pods(cluster)
    cluster.agents[2].process.stop()
    said = _refusal(cluster, *operation)
    assert "503" in said
    assert "edge2" in said
    assert "agent" in said
    assert "attached" in said


@pytest.mark.usefixtures("mode")
def test_kubectl_says_that_a_target_is_not_allowed(cluster: Cluster) -> None:
    agent = cluster.agents[1]
    cluster.attach(1)
    agent.process.stop()
    agent.configure(cluster.server, allow=["localhost:22"], drain_seconds=1)
    agent.start()
    try:
        said = _refusal(cluster, "get", "--raw", "/api/v1/nodes/edge1/proxy/metrics")
    finally:
        agent.process.stop()
        agent.configure(cluster.server, allow=[KUBELET], drain_seconds=1)
        agent.start()
    assert "403" in said
    assert "edge1" in said
    assert KUBELET in said
    assert "allow" in said


def test_kubectl_works_again_after_the_agent_came_back(cluster: Cluster) -> None:
    cluster.attach(*NODES)
    _make_pods(cluster)
    cluster.agents[2].process.kill()
    cluster.attach(2)
    wait_until(
        lambda: cluster.bed.kubectl("logs", "web2", "-c", "web", "--tail=1").returncode == 0,
        "kubectl logs to work",
    )


def _make_pods(cluster: Cluster) -> None:
    """``verify.sh`` makes the pods; one operation of it is enough here."""
    if cluster.bed.kubectl("get", "pod", "web1", "web2").returncode:
        cluster.bed.verify(*NODES)


def _refusal(cluster: Cluster, *operation: str) -> str:
    """What kubectl says on standard error, which must not take long."""
    cluster.bed.kubectl("version")  # reads its caches once, so that what is measured is the tunnel
    done, seconds = cluster.bed.kubectl_seconds(*operation)
    assert done.returncode != 0, done.stdout
    assert seconds < SENTENCE_SECONDS, f"{seconds:.2f} s until: {done.stderr}"
    return done.stderr
