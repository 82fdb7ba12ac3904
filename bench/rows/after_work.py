"""Memory that stays with both programs after connections and bulk, when they are quiet again."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.load import connect_rate, download_rate, upload_rate
from bench.plan import Plan
from bench.rounds import Row
from bench.systems.qanat import Product
from bench.usage import MIB, private_bytes, settled_bytes
from bench.world import World

_SLOTS = 32
"""New connections at once."""
_STREAMS = 8
"""Streams of the second half of the download."""


def measure(world: World) -> Iterator[Row]:
    """Measure on new processes, because other rows have left memory behind."""
    plan = world.plan
    with world.fresh_product() as product:
        ends = {"server": product.server_pids, "agent": product.agent_pids}
        before = {name: settled_bytes(pids) for name, pids in ends.items()}
        done = _work(product, plan)
        worked = {name: private_bytes(pids) for name, pids in ends.items()}
        time.sleep(plan.quiet_seconds)
        after = {name: private_bytes(pids) for name, pids in ends.items()}
    for name in ends:
        sizes = {"start": before[name], "work": worked[name], "quiet": after[name]}
        samples = {moment: [size / MIB] for moment, size in sizes.items()}
        note = f"{plan.quiet_seconds:g} s after {done} connections and {plan.work_mib} MiB each way"
        if not plan.whole:
            note += ", less than in the whole form"
        yield Row(f"rss_left_mib_{name}", (after[name] - before[name]) / MIB, "MiB", samples, note=note)


def _work(product: Product, plan: Plan) -> int:
    """Open connections and move bulk. Return how many connections there were."""
    done = 0.0
    while done < plan.work_connections:
        done += connect_rate(product.to["echo"], _SLOTS, plan.rate_seconds) * plan.rate_seconds
    half = plan.work_mib * MIB // 2
    download_rate(product.to["source"], 1, half)
    download_rate(product.to["source"], _STREAMS, half // _STREAMS)
    upload_rate(product.to["sink"], 2 * half)
    return round(done)
