"""What the flight limit costs where nobody needs it: on loopback, beside the same programs with it off."""

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
"""Three per cent are asked for: fewer are the noise of the machine."""


def measure(world: World) -> Iterator[Row]:
    plan = world.plan
    if not plan.whole:
        world.skipped.update(dict.fromkeys(_KEYS, ONLY_WHOLE))
        return
    rounds = _MORE_ROUNDS * plan.rounds
    with qanat.running(world.targets, world.fresh("unbounded"), bounded=False) as unbounded:
        systems = [world.product(), unbounded]
        bulk = [sized(rate, sizes(systems, rate, plan.bulk_seconds)) for rate in (download, download8)]
        taken = [*((take, "MiB/s") for take in bulk), (median_us(plan.echoes), "us")]
        for key, (take, unit) in zip(_KEYS, taken, strict=True):
            samples = alternate(systems, rounds, take)
            yield Row(key, ratio(samples, "qanat", "unbounded"), unit, samples)
