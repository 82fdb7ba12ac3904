"""First downloads over a path that became slow during a rest: how many move the session without need."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.keystrokes import downloads, opened
from bench.link import Link, can_measure, open_link
from bench.rounds import Row
from bench.systems import qanat
from bench.thin_link import LINES
from bench.world import World

_STARTS = 10
_QUEUE_SECONDS = 0.05
_FAST_SECONDS, _REST_SECONDS, _SLOW_SECONDS = 2.0, 1.5, 5.0


def measure(world: World) -> Iterator[Row]:
    if not can_measure(world, "moves_in_10_starts"):
        return
    with open_link(world) as link:
        moves = [_moves(world, link) for _ in range(_STARTS)]
    line = LINES["20mbit"]
    note = f"{line.round_trip_seconds * 1e3:g} ms round trip, a queue of {_QUEUE_SECONDS * 1e3:g} ms"
    yield Row("moves_in_10_starts", sum(moves), "", {"qanat": moves}, note=note)


def _moves(world: World, link: Link) -> float:
    """Return the moves of a new session: a download on the fast path, a rest, and one on the slow path."""
    link.net.set()
    with link.running(qanat.running, world.fresh("moves")) as (system, _):
        with opened(system.to["source"], 1) as socks, downloads(socks):
            time.sleep(_FAST_SECONDS)
        time.sleep(_REST_SECONDS)
        link.set(LINES["20mbit"], _QUEUE_SECONDS)
        with opened(system.to["source"], 1) as socks, downloads(socks):
            time.sleep(_SLOW_SECONDS)
            resumed = 'qanat_attaches_total{outcome="resumed"}'
            return qanat.labelled(system.server_ops, resumed, link.ends.server)
