"""Number of calls and files that one byte and one connection take: the paths' length, not their time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.paths import PROGRAMS, count_paths
from bench.rounds import Row
from bench.world import World

_UNITS = ("calls", "resumes", "files")


def measure(world: World) -> Iterator[Row]:
    """Count all paths. The value of a row is the number of calls of both programs together."""
    for path, counts in count_paths(world.fresh("paths"), world.plan.paths).items():
        samples = {
            f"{process} {unit}": [float(getattr(both[process], unit)) for both in counts]
            for process in PROGRAMS
            for unit in _UNITS
        }
        calls = statistics.median(sum(count.calls for count in both.values()) for both in counts)
        yield Row(path, calls, "", samples, inside="paths")
