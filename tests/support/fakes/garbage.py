"""What is left to the garbage collector, with the collector off."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is collected during the test but by ``collected``."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def collected() -> Counter[str]:
    """Collect, and return what of the product was in reference cycles."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return Counter(
            type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("tunnel_")
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()  # else they would be found again
