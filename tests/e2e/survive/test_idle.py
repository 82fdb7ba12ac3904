"""What an agent costs that nobody uses: IP bytes on its link, both directions, for each hour.

Counted from just after one exchange to just after a later one, so that a window of minutes is exact
whatever the interval of the pings is.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e import tools
from tests.e2e.survive.installation import made_site
from tests.net.emulated import Emulated, emulated

ALLOWED = {"default": 100_000, "metered": 15_000}
PROFILES = {"default": {}, "metered": {"link": {"profile": "metered"}}}
# Silence for so long ends an exchange.
PAUSE_SECONDS = 1.0
# The attach, and what TLS and HTTP/2 say once only.
SETTLED_SECONDS = 5.0


class Count(NamedTuple):
    seconds: float
    bytes: int

    @property
    def bytes_per_hour(self) -> float:
        return self.bytes / self.seconds * 3600


def test_idle_bytes(tmp_path: Path, long: bool) -> None:
    """Both profiles at once, each on a link of its own."""
    tools.require_emulated_links()
    counts: dict[str, Count] = {}
    watching = [
        threading.Thread(target=_count, args=(profile, tmp_path / profile, 600 if long else 150, counts))
        for profile in PROFILES
    ]
    for thread in watching:
        thread.start()
    for thread in watching:
        thread.join()
    assert counts.keys() == PROFILES.keys(), "a profile could not be counted; its thread says why"
    found = {profile: round(count.bytes_per_hour) for profile, count in counts.items()}
    assert all(found[profile] <= ALLOWED[profile] for profile in PROFILES), f"{found} from {counts}"


def _count(profile: str, folder: Path, seconds: float, counts: dict[str, Count]) -> None:
    with (
        emulated(f"qi{os.getpid()}{profile[0]}") as net,
        made_site(net, folder, agent=PROFILES[profile]) as site,
    ):
        # No request first: a stream that was busy is watched more closely for a while.
        site.recover()
        time.sleep(SETTLED_SECONDS)
        counts[profile] = count_exchanges(net, seconds)


def count_exchanges(net: Emulated, seconds: float) -> Count:
    """Whole exchanges within ``seconds``: from the end of the first to the end of the last."""
    ends: list[tuple[float, int]] = []
    changed_at, total = time.monotonic(), _bytes(net)
    pending = False
    end = changed_at + seconds
    while (now := time.monotonic()) < end:
        if (found := _bytes(net)) != total:
            changed_at, total, pending = now, found, True
        elif pending and now - changed_at > PAUSE_SECONDS:
            ends.append((changed_at, total))
            pending = False
        time.sleep(0.1)
    if len(ends) < 2:
        pytest.fail(f"{len(ends)} exchanges in {seconds} s: there is nothing to count between")
    (first, before), (last, after) = ends[0], ends[-1]
    return Count(last - first, after - before)


def _bytes(net: Emulated) -> int:
    return sum(counters.bytes for counters in net.counters().values())
