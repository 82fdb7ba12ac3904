"""Round trips until the first answer byte on a 50 ms line, if the client speaks first."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from bench.load import connect_seconds, dialler, echo_seconds
from bench.processes import module
from bench.rounds import Row, against_ssh
from bench.systems.system import System
from bench.world import World

ONE_WAY_SECONDS = 0.025
_COUNT = 5


def measure(world: World) -> Iterator[Row]:
    """Measure with a line between agent and server. One round trip is the time of an echo over that line."""
    line = _line_seconds(world)
    samples = {"qanat": _first_bytes(world.fresh_product(delay_seconds=ONE_WAY_SECONDS), world, line)}
    if not world.no_ssh():
        samples["ssh"] = _first_bytes(world.fresh_ssh(delay_seconds=ONE_WAY_SECONDS), world, line)
    note = f"the line's own round trip: {line * 1e3:.2f} ms"
    yield Row("first_byte_rtts", statistics.median(samples["qanat"]), "round trips", samples, note=note)
    yield from against_ssh("first_byte_rtts", samples)


def _line_seconds(world: World) -> float:
    arguments = (str(world.targets["echo"]), str(ONE_WAY_SECONDS))
    with module("bench.delay", *arguments, log=world.fresh("delay.log")) as (_, port):
        return statistics.median(echo_seconds(dialler("127.0.0.1", port), _COUNT))


def _first_bytes(starting: AbstractContextManager[System], world: World, line: float) -> Sequence[float]:
    with starting as system:
        connect_seconds(system.to["echo"], 2)
        rounds = [connect_seconds(system.to["echo"], _COUNT) for _ in range(world.plan.rounds)]
        return [statistics.median(seconds) / line for seconds in rounds]
