"""Bytes an hour on the link of an idle agent, with either profile."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from bench.exchanges import SETTLED_SECONDS, WINDOW_SECONDS, Count, count_exchanges
from bench.link import can_measure, open_link
from bench.rounds import Row
from bench.systems import qanat
from bench.world import World

_KEYS = {"idle_kb_per_hour": "default", "idle_kb_per_hour_metered": "metered"}


def measure(world: World) -> Iterator[Row]:
    keys = [key for key in _KEYS if can_measure(world, key)]
    if not keys:
        return
    with ThreadPoolExecutor(len(keys)) as pool:
        counts = {key: pool.submit(_count, world, _KEYS[key]) for key in keys}
        for key, counting in counts.items():
            count = counting.result()
            note = f"{count.bytes} bytes of IP packets in {count.seconds:.1f} s, from ping to ping"
            kilobytes = count.bytes_per_hour / 1e3
            yield Row(key, kilobytes, "KB", {"qanat": [kilobytes]}, note=note)


def _count(world: World, profile: str) -> Count:
    start = functools.partial(qanat.running, profile=profile)
    with open_link(world) as link, link.running(start, world.fresh(profile)):
        world.ended.wait(SETTLED_SECONDS)
        return count_exchanges(link.net.carried, WINDOW_SECONDS[profile], world.ended)
