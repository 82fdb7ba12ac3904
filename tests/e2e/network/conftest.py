"""Fixtures of the link tests: one network for all, one installation for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.net.namespaces import Network
from tests.support.processes import tools
from tests.support.processes.site import Site


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    tools.require_root()
    tools.require("ip", "iptables", "conntrack", "nsenter")
    with Network().built() as built:
        yield built


@pytest.fixture(scope="module")
def site(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Server, two agents, targets: running."""
    made = Site.made(network, tmp_path_factory.mktemp("site"))
    try:
        made.start()
        yield made
    finally:
        made.hang_up()
        made.stop()


@pytest.fixture
def unharmed(site: Site) -> Iterator[Site]:
    """The installation, whole before the test; after it, the next request works and nothing is left over."""
    site.recover()
    yield site
    site.hang_up()
    site.recover()
    site.wait_request()
    site.wait_settled()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh folder with a short path, for sockets."""
    return tmp_path_factory.mktemp("x")
