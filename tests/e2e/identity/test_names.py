"""A server whose name is in the hosts file alone, and a DNS that does not answer, as in many plants."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.identity.conftest import ALLOW
from tests.e2e.identity.homes import Home
from tests.e2e.identity.plain_proxy import PlainProxy
from tests.support.net.namespaces import Network
from tests.support.processes import tools
from tests.support.processes.processes import run
from tests.support.processes.programs import HTTPS_PORT, Server
from tests.support.processes.site import ECHO, targets

NAME, PROXY = "tunnel_1.plant.test", "proxy.plant.test"
SILENT_DNS = "10.201.0.53"
"""An address that no machine behind the NAT has. Packets to it are dropped."""
_PATIENT_SECONDS = 4.0
"""Far less than the 10 s that glibc waits for this DNS, far more than a join takes."""
_HIDDEN = 'mount --bind "$0" /etc/hosts && mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'


@pytest.fixture(scope="module")
def server(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cloud")
    made = Server(folder, network.cloud, network.cloud_address)
    made.initialise({"drain_seconds": 2}, names=[NAME])
    echoes = targets("targets", network.edge(1), folder)
    echoes.start()
    made.start()
    try:
        echoes.wait_log("ready")
        yield made
    finally:
        made.hang_up()
        made.process.kill()
        echoes.kill()


class Hidden(Home):
    """A machine with a hosts file of its own, and no DNS that answers."""

    @property
    def mounts(self) -> list[str]:
        return [tools.path_of("unshare"), "-m", "sh", "-c", _HIDDEN, *map(str, self.files)]

    @property
    def files(self) -> tuple[Path, Path]:
        return self.folder.with_name("hosts"), self.folder.with_name("resolv.conf")

    def command(self) -> list[str]:
        return [*self.mounts, *super().command()]

    def know(self, server: Server) -> None:
        hosts, dns = self.files
        dead = "10.201.0.7"  # a name has more than one address, and the first of them does not answer
        hosts.write_text(f"127.0.0.1 localhost\n{server.address} {NAME}\n{dead} {NAME}\n127.0.0.1 {PROXY}\n")
        dns.write_text(f"nameserver {SILENT_DNS}\n")

    def ask(self, *arguments: str) -> str:
        """Return the output of ``qanat-agent ARGUMENTS``."""
        argv = [*self.mounts, tools.program("qanat-agent"), *arguments, "--config", str(self.config_file)]
        done = run(*argv, namespace=self.namespace)
        return done.stdout + done.stderr


@pytest.fixture
def hidden(network: Network, tmp_path: Path, server: Server) -> Iterator[Hidden]:
    made = Hidden("edge1", tmp_path / "edge1", network.edge(1))
    made.know(server)
    yield made
    made.process.kill()


def test_dns_is_silent(hidden: Hidden) -> None:
    """If this machine's DNS answered, the test would not show the cure."""
    began = time.monotonic()
    done = run(*hidden.mounts, "getent", "hosts", "other.plant.test", namespace=hidden.namespace)
    assert done.returncode != 0
    assert time.monotonic() - began > _PATIENT_SECONDS


def test_join_check_and_run_use_the_hosts_file(server: Server, hidden: Hidden) -> None:
    began = time.monotonic()
    done = hidden.try_join(f"{NAME}:{HTTPS_PORT}", server.token("edge1"), *ALLOW, before=hidden.mounts)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < _PATIENT_SECONDS
    hidden.settle()
    assert "FAIL" not in hidden.ask("check")
    hidden.start(ready_seconds=_PATIENT_SECONDS)
    with server.connect(f"edge1:{ECHO}") as answer:
        assert answer.echoes(b"by the hosts file")


def test_a_proxy_of_the_hosts_file(server: Server, hidden: Hidden) -> None:
    """The agent looks up the proxy's name, and the proxy looks up the server's."""
    proxy = PlainProxy(hidden.namespace, server.address)
    with proxy.listening():
        hidden.config_file.write_text(f'proxy = "http://{PROXY}:{proxy.port}"\n')
        where = f"elsewhere.plant.test:{HTTPS_PORT}"
        refused = hidden.try_join(where, server.token("edge1"), before=hidden.mounts)
        assert f"is for {NAME}" in refused.stdout, refused.stdout
        done = hidden.try_join(f"{NAME}:{HTTPS_PORT}", server.token("edge1"), before=hidden.mounts)
        assert done.returncode == 0, done.stdout + done.stderr
        hidden.settle()
        assert "FAIL" not in hidden.ask("check")
        hidden.start(ready_seconds=_PATIENT_SECONDS)
        assert {NAME, "elsewhere.plant.test"} <= {asked.rpartition(":")[0] for asked in proxy.asked}
