"""The `connect` entrance over mTLS, against the `tcp` entrance of the same processes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.load import MIB, Dial, connect_seconds, download_rate, echo_seconds
from bench.rounds import Row, Samples, alternate, ratio
from bench.world import World

_PROBE_BYTES = 32 * MIB


@dataclass(frozen=True)
class _Entrance:
    name: str
    source: Dial
    echo: Dial


def measure(world: World) -> Iterator[Row]:
    """Measure both entrances. The client's own TLS counts too: Python's, in the bench's process."""
    plan, product = world.plan, world.product()
    entrances = [
        _Entrance("connect", product.connect["source"], product.connect["echo"]),
        _Entrance("tcp", product.to["source"], product.to["echo"]),
    ]
    size = int(download_rate(entrances[0].source, 1, _PROBE_BYTES) * MIB * plan.bulk_seconds)

    def run(rate: Callable[[_Entrance], float]) -> Samples:
        return alternate(entrances, plan.rounds, rate)

    download = run(lambda entrance: download_rate(entrance.source, 1, size))
    echo = run(lambda entrance: 1e6 * statistics.median(echo_seconds(entrance.echo, plan.echoes)))
    opening = run(lambda entrance: 1e6 * statistics.median(connect_seconds(entrance.echo, plan.connects)))
    yield _row("download_vs_tcp", "MiB/s", download)
    yield _row("echo_p50_vs_tcp", "us", echo)
    yield _row("connect_p50_vs_tcp", "us", opening)


def _row(key: str, unit: str, samples: Samples) -> Row:
    return Row(key, ratio(samples, "connect", "tcp"), unit, samples, inside="connect_mtls")
