"""How many calls and files one byte and one connection take: the length of the paths, not their time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.paths import PROGRAMS, count_paths
from bench.rounds import Row
from bench.world import World

_UNITS = ("calls", "resumes", "files")


def measure(world: World) -> Iterator[Row]:
    """The value of a row is the calls of both programs together."""
    for path, found in count_paths(world.fresh("paths"), world.plan.paths).items():
        samples = {
            f"{process} {unit}": [float(getattr(both[process], unit)) for both in found]
            for process in PROGRAMS
            for unit in _UNITS
        }
        calls = statistics.median(sum(count.calls for count in both.values()) for both in found)
        yield Row(path, calls, "", samples, inside="paths")
