"""Reference cycles of the product, found with the garbage collector switched off."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Switch the collector off during the test. Only ``collected`` collects."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def collected() -> Counter[str]:
    """Collect, and return the product's objects that were in reference cycles, by type."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return Counter(
            type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("tunnel_")
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()  # otherwise the next call would find them again
