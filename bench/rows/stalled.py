"""A hundred users who do not read: their effect on another user, and the memory that they hold."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from bench.load import MIB, download_rate, echo_seconds, stalled_streams
from bench.rounds import Row, alternate, ratio
from bench.systems.qanat import Product, metric
from bench.usage import settled_bytes, wait_quiet
from bench.world import World

_COUNT = 100
_PROBE_BYTES = 64 * MIB
_SETTLE_SECONDS = 0.3
_GROWN_BYTES = 2 * MIB
"""Bytes that the readers of the second case read before they stop, so that their credit has grown."""


@dataclass(frozen=True)
class _Condition:
    name: str
    open: Callable[[], AbstractContextManager[None]]


def measure(world: World) -> Iterator[Row]:
    plan, product = world.plan, world.product()
    conditions = [
        _Condition("stalled", lambda: _stalled_users(product)),
        _Condition("alone", contextlib.nullcontext),
    ]
    size = int(download_rate(product.to["source"], 1, _PROBE_BYTES) * MIB * plan.bulk_seconds)
    tails: dict[str, list[float]] = {condition.name: [] for condition in conditions}

    def measure_once(condition: _Condition) -> float:
        with condition.open():
            tails[condition.name].append(_p99_us(product, plan.echoes))
            return download_rate(product.to["source"], 1, size)

    rates = alternate(conditions, plan.rounds, measure_once)
    yield Row("stalled_kept", ratio(rates, "stalled", "alone"), "MiB/s", rates)
    yield Row("stalled_echo_p99", ratio(tails, "stalled", "alone"), "us", tails)
    yield _memory(world)


def _p99_us(product: Product, count: int) -> float:
    return 1e6 * statistics.quantiles(echo_seconds(product.to["echo"], count), n=100)[98]


@contextlib.contextmanager
def _stalled_users(product: Product) -> Iterator[None]:
    both = product.server_pids + product.agent_pids
    with stalled_streams(product.to["source"], _COUNT):
        wait_quiet(both)
        yield
    wait_quiet(both)


def _memory(world: World) -> Row:
    """Measure two cases on new processes, readers that never read and readers that stop; return the worse."""
    cases = {"never read": 0, "stopped after 2 MiB": _GROWN_BYTES}
    samples: dict[str, list[float]] = {}
    for _ in range(world.plan.memory_rounds):
        for name, read_first in cases.items():
            for side, value in _growth_over_credit(world, read_first).items():
                samples.setdefault(f"{name}, {side}", []).append(value)
    value = max(map(statistics.median, samples.values()))
    return Row("stalled_over_credit", value, "bytes of memory a byte of credit", samples)


def _growth_over_credit(world: World, read_first: int) -> dict[str, float]:
    with world.fresh_product() as product:
        with stalled_streams(product.to["source"], 3, _GROWN_BYTES):
            time.sleep(_SETTLE_SECONDS)
        sides = {"server": product.server_pids, "agent": product.agent_pids}
        before = {side: settled_bytes(pids) for side, pids in sides.items()}
        granted = metric(product.server_ops, "qanat_credit_granted_bytes")
        with stalled_streams(product.to["source"], _COUNT, read_first):
            after = {side: settled_bytes(pids) for side, pids in sides.items()}
            credit = metric(product.server_ops, "qanat_credit_granted_bytes") - granted
        return {side: (after[side] - before[side]) / credit for side in sides}
