"""A shell stays quick while the link is full: keys are timed beside bulk in both directions.

What counts is how much longer a key takes than the round trip of the empty link.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest

from bench.keystrokes import Meter, Typist, downloads, foreign_flow, opened, sink, uploads
from tests.e2e import tools
from tests.e2e.site import ECHO, SOURCE, Site
from tests.e2e.survive.doors import dial_to
from tests.e2e.survive.wires import open_pair
from tests.e2e.waiting import NotInTime, wait_until
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
WORST = [("20mbit", "all", 0.5), ("2mbit", "all", 0.5)]
CELLS = list(itertools.product(LINES, LOADS, QUEUES_SECONDS)) if tools.is_long() else WORST
KEYS_SECONDS = 12
FOREIGN_SHARE = 0.4


@pytest.mark.parametrize(("line", "load", "queue_seconds"), CELLS)
def test_keys(whole: Site, net: Emulated, line: str, load: str, queue_seconds: float) -> None:
    on = LINES[line]
    _attach_over(whole, net, on, queue_seconds)
    with dial_to(whole, ECHO)() as shell, bulk(whole, LOADS[load]) as meters:
        _warm_up(meters, on)
        with measured(meters, on) as shares:
            times = Typist(shell).type_for(KEYS_SECONDS)
    extra = p99(times) - on.round_trip_seconds
    found = f"p99 is {1000 * extra:.0f} ms above the round trip, bulk has {shares} of the link"
    assert extra <= on.extra_seconds, found
    assert all(share >= on.bulk_share for share in shares.values()), found


@pytest.mark.parametrize("queue_seconds", QUEUES_SECONDS if tools.is_long() else [0.5])
def test_bulk_holds_its_own_beside_a_foreign_flow(
    whole: Site, net: Emulated, queue_seconds: float, long: bool
) -> None:
    line = LINES["20mbit"]
    _attach_over(whole, net, line, queue_seconds)
    cloud, edge = open_pair(net)
    with bulk(whole, Load(1)) as ours:
        # Ours has the link and is to keep its part. Of two bare TCP flows that begin together one has 0.34
        # of the first quarter of a minute, and ours is no more than TCP lets it be.
        _warm_up(ours, line)
        with foreign_flow(edge, cloud) as theirs:
            meters = {**ours, "foreign": theirs}
            _warm_up({"foreign": theirs}, line)
            with measured(meters, line) as shares:
                time.sleep(30 if long else 12)
    assert shares["download"] / sum(shares.values()) >= FOREIGN_SHARE, shares


def _attach_over(site: Site, net: Emulated, line: Line, queue_seconds: float) -> None:
    """A new connection, because an old one remembers the link it began on."""
    net.set(rate=line.rate, delay_seconds=line.delay_seconds, queue_seconds=queue_seconds)
    site.agent.restart()
    site.wait_request()


@contextlib.contextmanager
def measured(meters: Mapping[str, Meter], line: Line) -> Iterator[dict[str, float]]:
    """What arrives meanwhile, as a share of what the link could carry; there at the end."""
    shares: dict[str, float] = {}
    before, start = {way: meter.bytes for way, meter in meters.items()}, time.monotonic()
    yield shares
    capacity = line.rate * (time.monotonic() - start)
    shares.update({way: (meter.bytes - before[way]) / capacity for way, meter in meters.items()})


@contextlib.contextmanager
def bulk(site: Site, load: Load) -> Iterator[Mapping[str, Meter]]:
    """Endless streams; what has arrived, by direction."""
    meters: dict[str, Meter] = {}
    with contextlib.ExitStack() as stack:
        if load.uploads:
            with site.agent.namespace.entered():
                listener = socket.create_server((site.network.loopback, 0))
            meters["upload"] = stack.enter_context(sink(listener))
            up = stack.enter_context(opened(dial_to(site, listener.getsockname()[1]), load.uploads))
        if load.downloads:
            down = stack.enter_context(opened(dial_to(site, SOURCE), load.downloads))
            meters["download"] = stack.enter_context(downloads(down))
        if load.uploads:
            stack.enter_context(uploads(up))
        yield meters


def _warm_up(meters: Mapping[str, Meter], line: Line) -> None:
    """Until every direction has moved what the link carries in three seconds; so its queue stands.

    What is not at full speed then is measured as it is.
    """
    with contextlib.suppress(NotInTime):
        wait_until(
            lambda: all(meter.bytes > 3 * line.rate for meter in meters.values()),
            "the bulk to be at full speed",
        )


def p99(times: Sequence[float]) -> float:
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]
