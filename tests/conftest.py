"""Settings of every test run."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings

# A loaded machine is no failure: what must be fast is measured in bench/.
settings.register_profile("qanat", deadline=None)
settings.load_profile("qanat")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests first that need a process without threads: gRPC, once loaded, keeps a poller thread."""
    items.sort(key=lambda item: item.get_closest_marker("without_threads") is None)


def pytest_collection_finish() -> None:
    """Keep the collected tests out of later searches for garbage, which take twice as long otherwise."""
    gc.collect()
    gc.freeze()
