"""Fixtures of the image tests: the network, the server's container, targets at both edges."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.containers import builder
from tests.e2e.containers.installation import CloudServer
from tests.support.net.namespaces import Network
from tests.support.processes.processes import Process
from tests.support.processes.site import targets

_BUILDS_ANEW = "test_two_builds_have_the_same_layers_and_configuration"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests last that wait for the longest builds."""
    order = ("test_layers.py", "test_arm.py")
    items.sort(key=lambda item: order.index(item.path.name) if item.path.name in order else -1)


@pytest.fixture(scope="package", autouse=True)
def _able(request: pytest.FixtureRequest) -> Iterator[None]:
    """Images can be built, and the builds that the chosen tests need have begun."""
    builder.require()
    builder.keep_small()
    chosen = [item for item in request.session.items if isinstance(item, pytest.Function)]
    for side in ("server", "agent"):
        builder.begin(side)
    if any(item.path.name == "test_arm.py" for item in chosen):
        builder.begin("agent", builder.ARMV7)
    if any(item.originalname == _BUILDS_ANEW for item in chosen):
        for side in ("agent", "server"):
            if not builder.known_content(side).exists():
                builder.begin_anew(side)
    yield
    builder.end()


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
