"""What the flight limit costs where nobody needs it: on loopback, beside the same programs with it off."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.link import ONLY_WHOLE
from bench.load import echo_seconds
from bench.rounds import Row, alternate, ratio
from bench.rows.bulk import download, download8, sized, sizes
from bench.systems import qanat
from bench.systems.system import System
from bench.world import World

_KEYS = ("download_vs_unbounded", "download8_vs_unbounded", "echo_p50_vs_unbounded")
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
        for key, rate in zip(_KEYS, (download, download8), strict=False):
            samples = alternate(systems, rounds, sized(rate, sizes(systems, rate, plan.bulk_seconds)))
            yield Row(key, ratio(samples, "qanat", "unbounded"), "MiB/s", samples)

        def median_us(system: System) -> float:
            return 1e6 * statistics.median(echo_seconds(system.to["echo"], plan.echoes))

        samples = alternate(systems, rounds, median_us)
        yield Row(_KEYS[-1], ratio(samples, "qanat", "unbounded"), "us", samples)
