"""Memory and processor time of the server for idle attached agents."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator

from bench.processes import BenchError, module
from bench.rounds import Row
from bench.systems import qanat
from bench.usage import cpu_percent, private_bytes, settled_bytes
from bench.world import World
from tunnel_core.identity import Role

_PROCESSES = 2
_WARM = 10
"""Agents that attach before the first reading of memory, because the first ones make the server load code."""
_WINDOWS = 5


def measure(world: World) -> Iterator[Row]:
    plan = world.plan
    with qanat.serving(world.targets, world.fresh("fleet")) as server, contextlib.ExitStack() as stack:
        _attach(stack, world, server, 0, _WARM)
        before = settled_bytes([server.pid])
        share = plan.fleet // _PROCESSES
        for number in range(_PROCESSES):
            _attach(stack, world, server, _WARM + number * share, share)
        attached = int(qanat.metric(server.ops, "qanat_sessions"))
        if attached != _WARM + share * _PROCESSES:
            raise BenchError(f"{attached} agents are attached, not {_WARM + share * _PROCESSES}")
        settled_bytes([server.pid])
        window = plan.fleet_seconds / _WINDOWS
        percents = [cpu_percent([server.pid], window) for _ in range(_WINDOWS)]
        grown = (private_bytes([server.pid]) - before) / (share * _PROCESSES) / 1024
    note = f"{share * _PROCESSES} agents with real TLS from {_PROCESSES} processes"
    yield Row("agents_kib", grown, "KiB", {"qanat": [grown]}, note=note)
    yield Row("agents_cpu_percent", statistics.fmean(percents), "% of a core", {"qanat": percents}, note=note)


def _attach(stack: contextlib.ExitStack, world: World, server: qanat.Server, first: int, count: int) -> None:
    folder = world.fresh("attachers")
    folder.mkdir()
    for number in range(first, first + count):
        qanat.issue(server.authority, Role.NODE, f"light-{number}", folder / f"{number}.pem")
    arguments = (str(folder), f"localhost:{server.agents}")
    stack.enter_context(module("bench.attachers", *arguments, log=folder / "log", seconds=10 + count / 20))
