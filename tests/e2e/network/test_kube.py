"""A real API server reaches real kubelets through Qanat: two nodes behind NAT with the SAME addresses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster.cluster import KUBELET, NODES, Cluster, running_cluster
from tests.support.processes.waiting import wait_until

# A node that the API server knows and Qanat does not.
STRANGER = """
apiVersion: v1
kind: Node
metadata: {name: edge9}
status:
  addresses: [{type: Hostname, address: edge9}]
  daemonEndpoints: {kubeletEndpoint: {Port: 10250}}
"""
SENTENCE_SECONDS = 1.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("kube"), {"drain_seconds": 1}) as made:
        yield made


@pytest.fixture(scope="module", params=["http-uds", "http-tcp"])
def mode(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """The way in which the API server connects. Its tests run together, because each change is a restart."""
    cluster.bed.switch(request.param)
    return str(request.param)


@pytest.mark.usefixtures("mode")
def test_every_operation_works_on_both_nodes(cluster: Cluster) -> None:
    cluster.attach(*NODES)
    cluster.bed.verify(*NODES)


@pytest.mark.usefixtures("mode")
def test_kubectl_shows_that_a_node_is_unknown(cluster: Cluster) -> None:
    cluster.bed.kubectl("create", "--validate=false", "-f", "-", stdin=STRANGER)
    try:
        message = _refusal(cluster, "get", "--raw", "/api/v1/nodes/edge9/proxy/metrics")
    finally:
        cluster.bed.kubectl("delete", "node", "edge9")
    assert "404" in message
    assert "edge9" in message
    assert "no node edge9 is known" in message


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize(
    "operation",
    [("logs", "web2", "-c", "web"), ("exec", "web2", "-c", "web", "--", "true")],
    ids=["logs", "exec"],
)
def test_kubectl_shows_that_an_agent_is_gone(cluster: Cluster, operation: tuple[str, ...]) -> None:
    cluster.attach(*NODES)
    cluster.make_pods()
    cluster.agents[2].process.stop()
    message = _refusal(cluster, *operation)
    assert "503" in message
    assert "edge2" in message
    assert "agent" in message
    assert "attached" in message


@pytest.mark.usefixtures("mode")
def test_kubectl_shows_that_a_target_is_not_allowed(cluster: Cluster) -> None:
    agent = cluster.agents[1]
    cluster.attach(1)
    agent.process.stop()
    agent.configure(cluster.server, allow=["localhost:22"], drain_seconds=1)
    agent.start()
    try:
        message = _refusal(cluster, "get", "--raw", "/api/v1/nodes/edge1/proxy/metrics")
    finally:
        agent.process.stop()
        agent.configure(cluster.server, allow=[KUBELET], drain_seconds=1)
        agent.start()
    assert "403" in message
    assert "edge1" in message
    assert KUBELET in message
    assert "allow" in message


def test_kubectl_works_again_after_the_agent_came_back(cluster: Cluster) -> None:
    cluster.attach(*NODES)
    cluster.make_pods()
    cluster.agents[2].process.kill()
    cluster.attach(2)
    wait_until(
        lambda: cluster.bed.kubectl("logs", "web2", "-c", "web", "--tail=1").returncode == 0,
        "kubectl logs to work",
    )


def _refusal(cluster: Cluster, *operation: str) -> str:
    """Return kubectl's message on standard error, which must come quickly."""
    cluster.bed.kubectl("version")  # reads its caches once, so that the test measures the tunnel
    done, seconds = cluster.bed.kubectl_seconds(*operation)
    assert done.returncode != 0, done.stdout
    assert seconds < SENTENCE_SECONDS, f"{seconds:.2f} s until: {done.stderr}"
    return done.stderr
