"""Fixtures of the resilience tests: one emulated network, and one installation for each file of tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from bench.exchanges import WINDOW_SECONDS, Count
from tests.e2e.resilience.idle import LONG_SECONDS, PROFILES, count_idle
from tests.e2e.resilience.installation import made_site
from tests.support.net.emulated import Emulated, emulated
from tests.support.processes import tools
from tests.support.processes.site import Site


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests last whose counting takes minutes beside the others."""
    items.sort(key=lambda item: item.path.name == "test_idle.py")


@pytest.fixture(scope="session")
def network() -> Iterator[Emulated]:
    tools.require_emulated_links()
    with emulated() as made:
        yield made


@pytest.fixture(scope="session", autouse=True)
def idle_counts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, long: bool
) -> Iterator[Mapping[str, Future[Count]]]:
    """The counts by profile. They start before the first test, because counting takes minutes."""
    if not any(item.originalname == "test_idle_bytes" for item in _functions(request)):
        yield {}
        return
    tools.require_emulated_links()
    windows = dict.fromkeys(PROFILES, LONG_SECONDS) if long else WINDOW_SECONDS
    ended = threading.Event()
    with ThreadPoolExecutor(len(PROFILES)) as pool:
        try:
            yield {
                profile: pool.submit(
                    count_idle, profile, tmp_path_factory.mktemp(profile), windows[profile], ended
                )
                for profile in PROFILES
            }
        finally:
            ended.set()


def _functions(request: pytest.FixtureRequest) -> list[pytest.Function]:
    """The tests that were chosen."""
    return [item for item in request.session.items if isinstance(item, pytest.Function)]


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
