"""New connections: the time to the first echo, and connections per second, 32 at once."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.load import connect_rate, connect_seconds
from bench.rounds import Row, against_baselines, alternate
from bench.systems.system import System
from bench.world import World

_SLOTS = 32


def measure(world: World) -> Iterator[Row]:
    plan, systems = world.plan, world.systems()

    def median_us(system: System) -> float:
        return 1e6 * statistics.median(connect_seconds(system.to["echo"], plan.connects))

    def rate(system: System) -> float:
        return connect_rate(system.to["echo"], _SLOTS, plan.rate_seconds)

    yield from against_baselines("connect_p50", "us", alternate(systems, plan.rounds, median_us))
    yield from against_baselines("connects", "/s", alternate(systems, plan.rounds, rate))
