"""A shell beside bulk on a thin link: the link, its load, and the results.

The result for a key is the time beyond the round trip of the empty link.
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
_MAX_WARM_UP_SECONDS = 10.0
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
    """Number of bulk streams in each direction."""

    downloads: int = 0
    uploads: int = 0


LINES = {"20mbit": Line(20 * MBIT, 0.025), "2mbit": Line(2 * MBIT, 0.15)}
LOADS = {"idle": Load(), "down": Load(1), "up": Load(0, 1), "all": Load(1 + 5, 1 + 5)}
QUEUES_SECONDS = (0.05, 0.5)
WORST_LOAD = "all"
"""Load of the worst rows. The worse queue depends on the system: a long one delays, a short one drops."""


class Result(NamedTuple):
    """Result of typing beside a load."""

    extra_seconds: float
    """p99 of the keys minus the round trip."""
    shares: Mapping[str, float]
    """Shares of the link's rate that the bulk reached, by loaded direction."""


def type_beside(to: Mapping[str, Dial], arrived: Meter, load: Load, line: Line, seconds: float) -> Result:
    """Type on `to["echo"]` for `seconds` beside the bulk of `load`. Raises `LoadError`."""
    with to["echo"]() as shell, bulk(to, arrived, load) as meters:
        warm_up(meters, line)
        with measured(meters, line) as shares:
            times = Typist(shell).type_for(seconds)
    return Result(p99(times) - line.round_trip_seconds, shares)


@contextlib.contextmanager
def bulk(to: Mapping[str, Dial], arrived: Meter, load: Load) -> Iterator[Mapping[str, Meter]]:
    """Run endless streams from `source` and to `sink` (meter: `arrived`); yield meters by direction."""
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
    """Wait until each direction has moved the link's bytes of three seconds, so that its queue is full.

    After ten seconds the measurement begins at the present speed.
    """
    end = time.monotonic() + _MAX_WARM_UP_SECONDS
    while any(meter.bytes < _WARM_SECONDS * line.rate for meter in meters.values()):
        if time.monotonic() > end:
            return
        time.sleep(_PAUSE_SECONDS)


@contextlib.contextmanager
def measured(meters: Mapping[str, Meter], line: Line) -> Iterator[dict[str, float]]:
    """Measure what arrives during the block, as a share of the link's rate. The end of the block sets it."""
    shares: dict[str, float] = {}
    before, start = {direction: meter.bytes for direction, meter in meters.items()}, time.monotonic()
    yield shares
    capacity = line.rate * (time.monotonic() - start)
    for direction, meter in meters.items():
        shares[direction] = (meter.bytes - before[direction]) / capacity


def p99(times: Sequence[float]) -> float:
    """Return the 99th percentile of `times`."""
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]
