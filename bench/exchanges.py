"""Counts what a link carries while nobody uses it: a few packets every now and then.

Counted from just after one exchange to just after a later one, so that a window of minutes is exact
whatever the interval of the pings is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from bench.load import LoadError

PAUSE_SECONDS = 1.0
"""Silence for so long ends an exchange."""
SETTLED_SECONDS = 5.0
"""The attach, and what TLS and HTTP/2 say once only."""
WINDOW_SECONDS = {"default": 150.0, "metered": 420.0}
"""By profile: two pings at least, which come every 15 and every 200 s."""
_LOOK_SECONDS = 0.1


class Count(NamedTuple):
    """Between two exchanges."""

    seconds: float
    bytes: int

    @property
    def bytes_per_hour(self) -> float:
        return self.bytes / self.seconds * 3600


def count_exchanges(
    carried: Callable[[], int],
    seconds: float,
    ended: threading.Event,
    *,
    pause_seconds: float = PAUSE_SECONDS,
) -> Count:
    """Whole exchanges within ``seconds``: from the end of the first to the end of the last.

    ``carried`` says how many bytes there were so far.
    """
    ends: list[Count] = []
    start = changed_at = time.monotonic()
    first = total = carried()
    pending = False
    while (now := time.monotonic()) < start + seconds:
        if (found := carried()) != total:
            changed_at, total, pending = now, found, True
        elif pending and now - changed_at > pause_seconds:
            ends.append(Count(changed_at - start, total - first))
            pending = False
        if ended.wait(min(_LOOK_SECONDS, pause_seconds / 4)):
            break
    if len(ends) < 2:
        raise LoadError(f"{len(ends)} exchanges in {seconds:g} s: there is nothing to count between")
    return Count(ends[-1].seconds - ends[0].seconds, ends[-1].bytes - ends[0].bytes)
