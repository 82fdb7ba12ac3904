"""What stands still costs memory: an idle agent, and an idle stream on both sides."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager

from bench.load import MIB, idle_streams
from bench.rounds import Row, Samples, against_ssh
from bench.systems.system import System
from bench.usage import settled_bytes
from bench.world import World

_WARM_STREAMS = 8
"""What the first streams load and fill is no cost of a stream."""


def measure(world: World) -> Iterator[Row]:
    """Fresh processes each time: what others have used and freed would hide the cost."""
    plan = world.plan
    found = {"qanat": [_look(world.fresh_product(), plan.idle_streams) for _ in range(plan.memory_rounds)]}
    if not world.no_ssh():
        found["ssh"] = [_look(world.fresh_ssh(), plan.ssh_idle_streams)] * plan.memory_rounds
    agents = {name: [agent for agent, _ in looks] for name, looks in found.items()}
    streams = {name: [stream for _, stream in looks] for name, looks in found.items()}
    yield from _rows("agent_rss_mib", "MiB", agents, "the whole RSS, code included")
    yield from _rows("stream_kib", "KiB", streams, f"{plan.idle_streams} streams that echoed once")


def _look(starting: AbstractContextManager[System], count: int) -> tuple[float, float]:
    """MiB of the fresh agent, and KiB of a stream."""
    with starting as system:
        agent = settled_bytes(system.agent_pids)
        both = system.server_pids + system.agent_pids
        with idle_streams(system.to["echo"], _WARM_STREAMS):
            before = settled_bytes(both)
        with idle_streams(system.to["echo"], count):
            grown = settled_bytes(both) - before
        return agent / MIB, grown / count / 1024


def _rows(key: str, unit: str, samples: Samples, note: str) -> Iterator[Row]:
    yield Row(key, statistics.median(samples["qanat"]), unit, samples, note=note)
    yield from against_ssh(key, samples)
