"""Memory of an idle agent, and of an idle stream on both sides."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

from bench.load import MIB, idle_streams
from bench.rounds import Row, Samples, against_ssh
from bench.systems.system import System
from bench.usage import resident_bytes, settled_bytes
from bench.world import World
from tunnel_core.runtime.memory_return import START_SECONDS

_WARM_STREAMS = 8
"""Streams before the measurement, because the first ones load code and fill caches."""


def measure(world: World) -> Iterator[Row]:
    """Measure on new processes each time, because memory that other rows freed would hide the cost."""
    plan, rounds = world.plan, range(world.plan.memory_rounds)
    results = {"qanat": [_measure_once(world.fresh_product(), plan.idle_streams) for _ in rounds]}
    if not world.no_ssh():
        results["ssh"] = [_measure_once(world.fresh_ssh(), plan.ssh_idle_streams)] * plan.memory_rounds
    agents = {name: [agent for agent, _ in pairs] for name, pairs in results.items()}
    streams = {name: [stream for _, stream in pairs] for name, pairs in results.items()}
    yield from _rows("agent_rss_mib", "MiB", agents, "the whole RSS, with the code that an idle agent uses")
    yield from _rows("stream_kib", "KiB", streams, f"{plan.idle_streams} streams that echoed once")


def _measure_once(starting: AbstractContextManager[System], count: int) -> tuple[float, float]:
    """Return the MiB of the new agent and the KiB of a stream."""
    with starting as system:
        time.sleep(START_SECONDS)
        settled_bytes(system.agent_pids)
        agent = resident_bytes(system.agent_pids)
        both = system.server_pids + system.agent_pids
        with idle_streams(system.to["echo"], _WARM_STREAMS):
            before = settled_bytes(both)
        with idle_streams(system.to["echo"], count):
            grown = settled_bytes(both) - before
        return agent / MIB, grown / count / 1024


def _rows(key: str, unit: str, samples: Samples, note: str) -> Iterator[Row]:
    yield Row(key, statistics.median(samples["qanat"]), unit, samples, note=note)
    yield from against_ssh(key, samples)
