"""Count the bytes on an idle link, which carries a few packets at long intervals.

A count begins just after one exchange and ends just after a later one. So a window of minutes is exact for
any interval of the pings.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from bench.load import LoadError

PAUSE_SECONDS = 1.0
"""Silence of this length ends an exchange."""
SETTLED_SECONDS = 5.0
"""Time for the attach and for the single messages of TLS and HTTP/2."""
WINDOW_SECONDS = {"default": 150.0, "metered": 420.0}
"""By profile. A window has at least two pings, which come every 15 s and every 200 s."""
_POLL_SECONDS = 0.1


class Count(NamedTuple):
    """Time and bytes between two exchanges."""

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
    """Count the bytes from the end of the first exchange within ``seconds`` to the end of the last.

    ``carried`` returns the link's byte count. ``ended`` stops the count early. Raises ``LoadError`` if there
    are fewer than two exchanges.
    """
    ends: list[Count] = []
    start = changed_at = time.monotonic()
    first = total = carried()
    pending = False
    while (now := time.monotonic()) < start + seconds:
        if (current := carried()) != total:
            changed_at, total, pending = now, current, True
        elif pending and now - changed_at > pause_seconds:
            ends.append(Count(changed_at - start, total - first))
            pending = False
        if ended.wait(min(_POLL_SECONDS, pause_seconds / 4)):
            break
    if len(ends) < 2:
        raise LoadError(f"{len(ends)} exchanges in {seconds:g} s: a count needs two")
    return Count(ends[-1].seconds - ends[0].seconds, ends[-1].bytes - ends[0].bytes)
