"""Fixtures of the image tests: the network, the server's container, targets at both edges."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.containers import builder
from tests.e2e.containers.installation import CloudServer
from tests.support.net.namespaces import Network
from tests.support.processes.processes import Process
from tests.support.processes.site import targets


@pytest.fixture(scope="package", autouse=True)
def _able() -> None:
    builder.require()
    builder.keep_small()


@pytest.fixture(scope="package")
def network(_able: None) -> Iterator[Network]:
    with Network().built() as built:
        yield built


@pytest.fixture(scope="package")
def server_image(_able: None) -> str:
    return builder.image("server")


@pytest.fixture(scope="package")
def agent_image(_able: None) -> str:
    return builder.image("agent")


@pytest.fixture(scope="package")
def server(
    network: Network, server_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CloudServer]:
    """One for all tests; a test that ends it starts it again."""
    made = CloudServer(tmp_path_factory.mktemp("cloud"), network, server_image)
    try:
        made.run()
        yield made
    finally:
        made.hang_up()
        made.container.remove()


@pytest.fixture(scope="package")
def at_the_edges(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    """The targets of each edge."""
    folder = tmp_path_factory.mktemp("targets")
    running = [targets(f"targets{number}", network.edge(number), folder) for number in (1, 2)]
    try:
        for process in running:
            process.start()
            process.wait_log("ready")
        yield running
    finally:
        for process in running:
            process.kill()
