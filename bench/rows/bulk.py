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
    systems = world.everyone()
    for key, rate in (("download", _download), ("upload", _upload), ("download8", _download8)):
        sizes = _sizes(systems, rate, world.plan.bulk_seconds)
        samples = alternate(systems, world.plan.rounds, _sized(rate, sizes))
        yield from against_baselines(key, "MiB/s", samples)


def _sized(rate: _Rate, sizes: Mapping[str, int]) -> Callable[[System], float]:
    return lambda system: rate(system, sizes[system.name])


def _sizes(systems: Sequence[System], rate: _Rate, seconds: float) -> Mapping[str, int]:
    """Bytes that keep each system busy for so long; finding out also warms it up."""
    return {
        system.name: max(_PROBE_BYTES, int(rate(system, _PROBE_BYTES) * MIB * seconds)) for system in systems
    }


def _download(system: System, size: int) -> float:
    return download_rate(system.to["source"], 1, size)


def _download8(system: System, size: int) -> float:
    return download_rate(system.to["source"], _STREAMS, size // _STREAMS)


def _upload(system: System, size: int) -> float:
    return upload_rate(system.to["sink"], size)
