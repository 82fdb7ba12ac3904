"""A shell beside bulk on a thin link: what the link is, what loads it, and what a measurement finds.

What counts of a key is how much longer it takes than the round trip of the empty link.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.keystrokes import Meter, Typist, downloads, opened, uploads
from bench.load import Dial

MBIT = 125_000
_WARM_SECONDS = 3.0
_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class Line:
    """A link, the same in both directions. `rate` in bytes per second."""

    rate: float
    delay_seconds: float

    @property
    def round_trip_seconds(self) -> float:
        return 2 * self.delay_seconds


@dataclass(frozen=True)
class Load:
    """How many bulk streams there are each way."""

    downloads: int = 0
    uploads: int = 0


LINES = {"20mbit": Line(20 * MBIT, 0.025), "2mbit": Line(2 * MBIT, 0.15)}
LOADS = {"idle": Load(), "down": Load(1), "up": Load(0, 1), "all": Load(1 + 5, 1 + 5)}
QUEUES_SECONDS = (0.05, 0.5)
WORST_LOAD = "all"
"""Which of the queues is worse depends on the system: a long one is a long wait, a short one loses."""


class Found(NamedTuple):
    extra_seconds: float
    """p99 of the keys less the round trip."""
    shares: Mapping[str, float]
    """Of what the link could carry, by the direction that was loaded."""


def type_beside(to: Mapping[str, Dial], arrived: Meter, load: Load, line: Line, seconds: float) -> Found:
    """Types on `to["echo"]` for so long beside the bulk of `bulk`."""
    with to["echo"]() as shell, bulk(to, arrived, load) as meters:
        warm_up(meters, line)
        with measured(meters, line) as shares:
            times = Typist(shell).type_for(seconds)
    return Found(p99(times) - line.round_trip_seconds, shares)


@contextlib.contextmanager
def bulk(to: Mapping[str, Dial], arrived: Meter, load: Load) -> Iterator[Mapping[str, Meter]]:
    """Endless streams from `source` and to `sink`, where `arrived` counts; what has arrived, by direction."""
    meters: dict[str, Meter] = {}
    with contextlib.ExitStack() as stack:
        if load.uploads:
            up = stack.enter_context(opened(to["sink"], load.uploads))
            meters["upload"] = arrived
        if load.downloads:
            down = stack.enter_context(opened(to["source"], load.downloads))
            meters["download"] = stack.enter_context(downloads(down))
        if load.uploads:
            stack.enter_context(uploads(up))
        yield meters


def warm_up(meters: Mapping[str, Meter], line: Line) -> None:
    """Until every direction has moved what the link carries in three seconds; so its queue stands.

    What is not at full speed after a while is measured as it is.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    while any(meter.bytes < _WARM_SECONDS * line.rate for meter in meters.values()):
        if time.monotonic() > end:
            return
        time.sleep(_PAUSE_SECONDS)


@contextlib.contextmanager
def measured(meters: Mapping[str, Meter], line: Line) -> Iterator[dict[str, float]]:
    """What arrives meanwhile, as a share of what the link could carry; there at the end."""
    shares: dict[str, float] = {}
    before, start = {way: meter.bytes for way, meter in meters.items()}, time.monotonic()
    yield shares
    capacity = line.rate * (time.monotonic() - start)
    shares.update({way: (meter.bytes - before[way]) / capacity for way, meter in meters.items()})


def p99(times: Sequence[float]) -> float:
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]
