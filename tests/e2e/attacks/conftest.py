"""Fixtures of the attacks: one installation for each test file, and an innocent user's echo through it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.attacks.echo import SLOWER, Echo
from tests.e2e.attacks.ground import Ground


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Repeat an attack once that delayed the echoes, as other work on the machine rarely does so twice."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=[SLOWER]))


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """Return the changes to server.toml; a file of tests may have a fixture of its own."""
    return {}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> Iterator[Ground]:
    """Server, innocent node and targets: running."""
    with Ground.running(tmp_path_factory.mktemp("ground"), settings) as made:
        yield made


@pytest.fixture
def site(ground: Ground) -> Iterator[Ground]:
    """The same, whole before the test; after it the next request works. Logs are shown if the test fails."""
    ground.recover()
    ground.wait_request()
    yield ground
    ground.hang_up()
    ground.recover()
    ground.wait_request()


@pytest.fixture(scope="module")
def innocent_echo(ground: Ground) -> Iterator[Echo]:
    """Run echoes of the user ``innocent``, who connects over TLS, all the time."""
    with ground.echoing(identity=ground.user_bundle("innocent")) as echo:
        yield echo


@pytest.fixture
def echo(site: Ground, innocent_echo: Echo) -> Echo:
    """``innocent_echo``, with the installation whole."""
    return innocent_echo
