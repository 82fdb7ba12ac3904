"""A shell stays quick while the link is full: keys are timed beside bulk in both directions.

What counts is how much longer a key takes than the round trip of the empty link.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest

from bench.keystrokes import Meter, downloads, foreign_flow, keystrokes, sink, uploads
from tests.e2e.site import ECHO, SOURCE, Site
from tests.e2e.survive.doors import dial_to
from tests.e2e.survive.wires import open_pair
from tests.e2e.waiting import wait_until
from tests.net.emulated import Emulated

MBIT = 125_000


@dataclass(frozen=True)
class Line:
    """A link, and the floors that hold on it."""

    rate: float
    delay_seconds: float
    extra_seconds: float
    bulk_share: float

    @property
    def round_trip_seconds(self) -> float:
        return 2 * self.delay_seconds


@dataclass(frozen=True)
class Load:
    """How many bulk streams there are each way."""

    downloads: int = 0
    uploads: int = 0


LINES = {"20mbit": Line(20 * MBIT, 0.025, 0.08, 0.8), "2mbit": Line(2 * MBIT, 0.15, 0.4, 0.8)}
LOADS = {"idle": Load(), "down": Load(1), "up": Load(0, 1), "all": Load(1 + 5, 1 + 5)}
QUEUES_SECONDS = (0.05, 0.5)
# The worst of each line; the rest is for --long.
SHORT = {("20mbit", "all", 0.5), ("2mbit", "all", 0.5)}
KEYS_SECONDS = 12
FOREIGN_SHARE = 0.4


@pytest.mark.parametrize("queue_seconds", QUEUES_SECONDS)
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("line", LINES)
def test_keys(whole: Site, net: Emulated, line: str, load: str, queue_seconds: float, long: bool) -> None:
    if not long and (line, load, queue_seconds) not in SHORT:
        return
    on = LINES[line]
    net.set(rate=on.rate, delay_seconds=on.delay_seconds, queue_seconds=queue_seconds)
    with bulk(whole, LOADS[load]) as meters:
        _wait_full(meters, on)
        before = {way: meter.bytes for way, meter in meters.items()}
        times = keystrokes(dial_to(whole, ECHO), KEYS_SECONDS)
        shares = {way: (meter.bytes - before[way]) / KEYS_SECONDS / on.rate for way, meter in meters.items()}
    extra = p99(times) - on.round_trip_seconds
    found = f"p99 is {1000 * extra:.0f} ms above the round trip, bulk has {shares} of the link"
    assert extra <= on.extra_seconds, found
    assert all(share >= on.bulk_share for share in shares.values()), found


@pytest.mark.parametrize("queue_seconds", QUEUES_SECONDS)
def test_bulk_holds_its_own_beside_a_foreign_flow(
    whole: Site, net: Emulated, queue_seconds: float, long: bool
) -> None:
    line = LINES["20mbit"]
    net.set(rate=line.rate, delay_seconds=line.delay_seconds, queue_seconds=queue_seconds)
    cloud, edge = open_pair(net)
    with bulk(whole, Load(1)) as meters, foreign_flow(edge, cloud) as foreign:
        _wait_full({**meters, "foreign": foreign}, line)
        ours, theirs = meters["download"].bytes, foreign.bytes
        keystrokes(dial_to(whole, ECHO), 30 if long else 8)
        ours, theirs = meters["download"].bytes - ours, foreign.bytes - theirs
    assert ours / (ours + theirs) >= FOREIGN_SHARE, f"ours {ours}, theirs {theirs} bytes"


@contextlib.contextmanager
def bulk(site: Site, load: Load) -> Iterator[Mapping[str, Meter]]:
    """Endless streams; what has arrived, by direction."""
    meters: dict[str, Meter] = {}
    with contextlib.ExitStack() as stack:
        if load.downloads:
            meters["download"] = stack.enter_context(downloads(dial_to(site, SOURCE), load.downloads))
        if load.uploads:
            with site.agent.namespace.entered():
                listener = socket.create_server((site.network.loopback, 0))
            meters["upload"] = stack.enter_context(sink(listener))
            port = listener.getsockname()[1]
            stack.enter_context(uploads(dial_to(site, port), load.uploads))
        yield meters


def _wait_full(meters: Mapping[str, Meter], line: Line) -> None:
    """Until every direction has moved what the link carries in three seconds: then its queue stands."""
    for way, meter in meters.items():
        enough = 3 * line.rate
        wait_until(lambda m=meter: m.bytes > enough, f"{way} to be at full speed", deadline_seconds=30)


def p99(times: Sequence[float]) -> float:
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]
