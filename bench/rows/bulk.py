"""Bulk: one download, one upload, eight downloads together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from bench.load import MIB, download_rate, upload_rate
from bench.rounds import Row, against_baselines, alternate
from bench.systems.system import System
from bench.world import World

_Rate: TypeAlias = Callable[[System, int], float]
_PROBE_BYTES = 48 * MIB
_STREAMS = 8


def measure(world: World) -> Iterator[Row]:
    systems = world.systems()
    for key, rate in (("download", download), ("upload", upload), ("download8", download8)):
        wanted = sizes(systems, rate, world.plan.bulk_seconds)
        samples = alternate(systems, world.plan.rounds, sized(rate, wanted))
        yield from against_baselines(key, "MiB/s", samples)


def sized(rate: _Rate, wanted: Mapping[str, int]) -> Callable[[System], float]:
    """Return `rate` with the size (bytes) of each system."""
    return lambda system: rate(system, wanted[system.name])


def sizes(systems: Sequence[System], rate: _Rate, seconds: float) -> Mapping[str, int]:
    """Return the bytes that keep each system busy for `seconds`; the trial also warms the system up."""
    return {
        system.name: max(_PROBE_BYTES, int(rate(system, _PROBE_BYTES) * MIB * seconds)) for system in systems
    }


def download(system: System, size: int) -> float:
    return download_rate(system.to["source"], 1, size)


def download8(system: System, size: int) -> float:
    return download_rate(system.to["source"], _STREAMS, size // _STREAMS)


def upload(system: System, size: int) -> float:
    return upload_rate(system.to["sink"], size)
