"""Echoes of 64 bytes: the round trip, and echoes per second on 8 and on 64 connections."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from bench.load import echo_rate, echo_seconds
from bench.rounds import Row, against_baselines, alternate
from bench.systems.system import System
from bench.world import World


def measure(world: World) -> Iterator[Row]:
    plan, systems = world.plan, world.systems()

    def rate(connections: int, system: System) -> float:
        return echo_rate(system.to["echo"], connections, plan.rate_seconds)

    yield from against_baselines("echo_p50", "us", alternate(systems, plan.rounds, median_us(plan.echoes)))
    yield from against_baselines("echo8", "/s", alternate(systems, plan.rounds, lambda s: rate(8, s)))
    yield from against_baselines("echo64", "/s", alternate(systems, plan.rounds, lambda s: rate(64, s)))


def median_us(count: int) -> Callable[[System], float]:
    """Return a measurement of the median round trip of `count` echoes, in microseconds."""
    return lambda system: 1e6 * statistics.median(echo_seconds(system.to["echo"], count))
