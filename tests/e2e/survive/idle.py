"""Counts what an idle agent costs on a link of its own, while other tests run on theirs.

Counted from just after one exchange to just after a later one, so that a window of minutes is exact
whatever the interval of the pings is.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.survive.installation import made_site
from tests.net.emulated import Emulated, emulated

PROFILES: Mapping[str, Mapping[str, Any]] = {"default": {}, "metered": {"link": {"profile": "metered"}}}
SHORT_SECONDS, LONG_SECONDS = 150, 600
# Silence for so long ends an exchange.
_PAUSE_SECONDS = 1.0
# The attach, and what TLS and HTTP/2 say once only.
_SETTLED_SECONDS = 5.0
_LOOK_SECONDS = 0.1


class Count(NamedTuple):
    """Between two exchanges."""

    seconds: float
    bytes: int

    @property
    def bytes_per_hour(self) -> float:
        return self.bytes / self.seconds * 3600


def count_idle(profile: str, folder: Path, seconds: float, ended: threading.Event) -> Count:
    """Starts an agent with this profile, and counts for ``seconds``, or until ``ended``."""
    with (
        emulated(f"qi{os.getpid()}{profile[0]}") as net,
        made_site(net, folder, agent=PROFILES[profile]) as site,
    ):
        # No request first: after a stream that was busy the link is watched more closely for a while.
        site.recover()
        ended.wait(_SETTLED_SECONDS)
        return _count_exchanges(net, seconds, ended)


def _count_exchanges(net: Emulated, seconds: float, ended: threading.Event) -> Count:
    """Whole exchanges within ``seconds``: from the end of the first to the end of the last."""
    ends: list[Count] = []
    start = changed_at = time.monotonic()
    first = total = _bytes(net)
    pending = False
    while (now := time.monotonic()) < start + seconds:
        if (found := _bytes(net)) != total:
            changed_at, total, pending = now, found, True
        elif pending and now - changed_at > _PAUSE_SECONDS:
            ends.append(Count(changed_at - start, total - first))
            pending = False
        if ended.wait(_LOOK_SECONDS):
            break
    assert len(ends) > 1, f"{len(ends)} exchanges in {seconds:g} s: there is nothing to count between"
    return Count(ends[-1].seconds - ends[0].seconds, ends[-1].bytes - ends[0].bytes)


def _bytes(net: Emulated) -> int:
    return sum(counters.bytes for counters in net.counters().values())
