"""A cluster installed with the code before the store: kubectl works on, whichever half is newer.

Without Kubernetes: ``tests/e2e/compat/test_before_the_store``, with the same older code.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster.cluster import KUBELET, NODES, Cluster, running_cluster
from tests.support.cluster.kube import CLOUD_ADDRESS
from tests.support.net.namespaces import Namespace
from tests.support.processes import tools
from tests.support.processes.before_the_store import COMMIT, Before, is_known
from tests.support.processes.processes import run
from tests.support.processes.programs import HTTPS_PORT, Agent, Server
from tests.support.processes.waiting import wait_until


class ServerOfBefore(Server):
    def __init__(self, before: Before, folder: Path, namespace: Namespace, address: str) -> None:
        self._before = before
        super().__init__(folder, namespace, address)

    def administering(self, *arguments: str) -> list[str]:
        return self._before.command("tunnel_server", *arguments)


class AgentOfBefore(Agent):
    def __init__(self, before: Before, node: str, folder: Path, namespace: Namespace) -> None:
        self._before = before
        super().__init__(node, folder, namespace)

    def command(self) -> list[str]:
        return self._before.command("tunnel_agent", "run", "--config", str(self.config_file))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Run a cluster of the older code."""
    if not is_known():
        pytest.skip(f"needs the history of the repository, back to {COMMIT}: git fetch --unshallow")
    folder = tmp_path_factory.mktemp("kube")
    before = Before(folder / "code")
    with running_cluster(
        folder,
        {"drain_seconds": 1},
        make_server=functools.partial(ServerOfBefore, before),
        make_agent=functools.partial(AgentOfBefore, before),
    ) as made:
        made.make_pods()
        yield made


def _wait_kubectl(cluster: Cluster) -> None:
    """``logs`` and ``exec`` work on both nodes."""
    for node in NODES:
        pod = (f"web{node}", "-c", "web")
        for operation in (("logs", *pod, "--tail=1"), ("exec", *pod, "--", "true")):
            wait_until(
                lambda operation=operation: cluster.bed.kubectl(*operation).returncode == 0,
                f"kubectl {operation[0]} of {pod[0]}",
                deadline_seconds=60,
            )


def test_kubectl_works_through_each_step_of_an_upgrade(cluster: Cluster) -> None:
    bed, old = cluster.bed, cluster.server
    _wait_kubectl(cluster)
    assert not (old.data_dir / "store.db").exists()
    certificates = {agent.node: agent.bundle.read_bytes() for agent in cluster.agents.values()}

    old.process.stop()
    cluster.server = Server(old.folder, bed.cloud, CLOUD_ADDRESS)
    cluster.server.allow("kube-apiserver")  # A store that is made anew gives access to nobody.
    cluster.server.start()
    _wait_kubectl(cluster)  # agents of before, a server of today
    assert (old.data_dir / "store.db").exists()

    for number in NODES:
        agent = cluster.agents[number]
        agent.process.stop()
        cluster.agents[number] = Agent(agent.node, agent.folder, agent.namespace)
        assert cluster.agents[number].bundle.read_bytes() == certificates[agent.node]
    cluster.attach(*NODES)
    _wait_kubectl(cluster)

    # What came since works on what was there: out, and in again with a token.
    cluster.server.command_line("node", "revoke", "edge2", "--yes")
    refused = bed.kubectl("logs", "web2", "-c", "web", "--tail=1")
    assert refused.returncode != 0
    assert "revoked" in refused.stderr, refused.stderr
    token = cluster.server.token("edge2")
    _join_again(cluster.agents[2], cluster.server, token)
    _wait_kubectl(cluster)


def _join_again(agent: Agent, server: Server, token: str) -> None:
    argv = [
        tools.program("qanat-agent"),
        "join",
        f"{server.address}:{HTTPS_PORT}",
        "--name",
        agent.node,
        "--again",
    ]
    done = run(
        *argv, "--config", str(agent.config_file), "--allow", KUBELET,
        namespace=agent.namespace, stdin=token.encode(),
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
