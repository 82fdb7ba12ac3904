"""The releases that are tested together, and an installation of each pair."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.compat.installation import Installation, running_installation
from tests.e2e.compat.releases import Release, install_earlier, release_of_now


@pytest.fixture(scope="session")
def now() -> Release:
    """The programs of this tree."""
    return release_of_now()


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The programs of the earlier commit. Without them each test is skipped."""
    return install_earlier(tmp_path_factory.mktemp("earlier"))


@pytest.fixture(scope="module", params=["server of now, agent of before", "server of before, agent of now"])
def installation(
    request: pytest.FixtureRequest,
    earlier: Release,
    now: Release,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Installation]:
    """A running server and agent of different releases, for all tests of a file."""
    pair = (now, earlier) if request.param.startswith("server of now") else (earlier, now)
    with running_installation(tmp_path_factory.mktemp("c"), *pair) as made:
        yield made


@pytest.fixture
def site(installation: Installation) -> Iterator[Installation]:
    """The installation, once a request works. The logs of its programs are shown if the test fails."""
    installation.wait_request()
    yield installation
    installation.hang_up()
