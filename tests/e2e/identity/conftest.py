"""Fixtures of the identity tests: one network, and one server with targets for each file of tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.identity.homes import Home
from tests.support.net.namespaces import Network
from tests.support.processes import tools
from tests.support.processes.programs import Server
from tests.support.processes.site import ECHO, targets

ALLOW = ("--allow", f"localhost:{ECHO}")
HomeMaker = Callable[..., Home]


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    tools.require_root()
    tools.require("ip", "iptables", "nsenter", "openssl", "curl")
    with Network().built() as built:
        yield built


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """What is laid over server.toml; a file of tests may have a fixture of its own."""
    return {}


@pytest.fixture(scope="module")
def server(
    network: Network, tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]
) -> Iterator[Server]:
    """Running, with echo targets at the first edge."""
    folder = tmp_path_factory.mktemp("cloud")
    made = Server(folder, network.cloud, network.cloud_address)
    made.initialise({"drain_seconds": 2, **settings})
    made.allow("*")  # The attackers' certificates are of users whom no command issued them to.
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


@pytest.fixture
def home(network: Network, tmp_path: Path) -> Iterator[HomeMaker]:
    """Make machines, by default at the first edge. Their agents end with the test."""
    made: list[Home] = []

    def make(node: str, edge: int = 1) -> Home:
        made.append(Home(node, tmp_path / node, network.edge(edge), ops_port=7100 + len(made)))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
