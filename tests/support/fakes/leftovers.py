"""Objects that only the garbage collector would free."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import pytest


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Switch the collector off during the test."""
    gc.collect()
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def left_to_the_collector() -> Counter[str]:
    """Return the unreachable objects that still exist, by type."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.garbage)
    gc.garbage.clear()
    return found
