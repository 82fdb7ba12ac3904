"""What the tests of surviving share: one emulated network, and one installation for each file of tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e import tools
from tests.e2e.site import Site
from tests.e2e.survive.installation import made_site
from tests.net.emulated import Emulated, emulated


@pytest.fixture(scope="session")
def network() -> Iterator[Emulated]:
    tools.require_emulated_links()
    with emulated(f"qs{os.getpid()}") as made:
        yield made


@pytest.fixture
def net(network: Emulated) -> Iterator[Emulated]:
    """The network, with no limit and no cut before and after the test."""
    network.set()
    yield network
    network.restore()
    network.set()


@pytest.fixture(scope="module")
def site(network: Emulated, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Server, agent, targets: running."""
    with made_site(network, tmp_path_factory.mktemp("site")) as made:
        made.start()
        yield made


@pytest.fixture
def whole(site: Site, net: Emulated) -> Iterator[Site]:
    """The installation, attached before the test and without users after it."""
    site.recover()
    site.wait_request(deadline_seconds=60)
    yield site
    net.restore()
    site.hang_up()
