"""Counts by key that drop a key whose count returns to zero. No I/O.

Keys are names of users, nodes and sources, which strangers choose. So a table holds only keys in use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


class Tally(Counter[K]):
    """A ``Counter`` from which keys are taken one at a time."""

    def take(self, key: K) -> None:
        """Undo one ``+= 1``. Does nothing for a key that is not counted."""
        if self[key] > 1:
            self[key] -= 1
        else:
            del self[key]
