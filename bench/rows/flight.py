"""Cost of the flight limit on loopback, against the same programs without the limit."""

from __future__ import annotations

from collections.abc import Iterator

from bench.figures import FAMILIES
from bench.link import ONLY_WHOLE
from bench.rounds import Row, alternate, ratio
from bench.rows.bulk import download, download8, sized, sizes
from bench.rows.echo import median_us
from bench.systems import qanat
from bench.world import World

_KEYS = FAMILIES["flight"]
_MORE_ROUNDS = 3
"""Factor for the rounds, because the floor is three per cent, and fewer rounds have as much noise."""


def measure(world: World) -> Iterator[Row]:
    plan = world.plan
    if not plan.whole:
        world.skipped.update(dict.fromkeys(_KEYS, ONLY_WHOLE))
        return
    rounds = _MORE_ROUNDS * plan.rounds
    with qanat.running(world.targets, world.fresh("unbounded"), bounded=False) as unbounded:
        systems = [world.product(), unbounded]
        bulk = [sized(rate, sizes(systems, rate, plan.bulk_seconds)) for rate in (download, download8)]
        measurements = [*((rate, "MiB/s") for rate in bulk), (median_us(plan.echoes), "us")]
        for key, (measurement, unit) in zip(_KEYS, measurements, strict=True):
            samples = alternate(systems, rounds, measurement)
            yield Row(key, ratio(samples, "qanat", "unbounded"), unit, samples)
