"""The path swallows everything for ten seconds and comes back: how long until open streams go on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from bench.keystrokes import Meter, downloads, echoes, opened, uploads
from bench.link import can_measure, open_link
from bench.load import LoadError
from bench.rounds import Row
from bench.systems import qanat
from bench.systems.system import System
from bench.thin_link import LINES, warm_up
from bench.world import World
from tests.support.net.emulated import Emulated

_CUT_SECONDS = 10.0
_QUEUE_SECONDS = 0.1
_ROUNDS = 3
_PATIENCE_SECONDS = 30.0
_LOOK_SECONDS = 0.002


def measure(world: World) -> Iterator[Row]:
    if not can_measure(world, "resume_seconds"):
        return
    line = LINES["20mbit"]
    with open_link(world) as link:
        link.set(line, _QUEUE_SECONDS)
        with (
            link.running(qanat.running, world.fresh("hole")) as (system, arrived),
            _streams(system, arrived) as meters,
        ):
            rounds = []
            for _ in range(_ROUNDS):
                # Each cut finds the streams at full speed, also after an earlier one.
                time.sleep(2)
                warm_up({way: meters[way] for way in ("download", "upload")}, line)
                rounds.append(_seconds_until_on(link.net, meters))
    samples = {name: [took[name] for took in rounds] for name in rounds[0]}
    note = f"the slowest in {_ROUNDS} cuts of {_CUT_SECONDS:g} s"
    yield Row("resume_seconds", max(map(max, samples.values())), "s", samples, note=note)


@contextlib.contextmanager
def _streams(system: System, arrived: Meter) -> Iterator[Mapping[str, Meter]]:
    with (
        opened(system.to["echo"], 1) as echo,
        opened(system.to["source"], 1) as down,
        opened(system.to["sink"], 1) as up,
        echoes(echo) as echoed,
        downloads(down) as downloaded,
        uploads(up),
    ):
        yield {"echo": echoed, "download": downloaded, "upload": arrived}


def _seconds_until_on(net: Emulated, meters: Mapping[str, Meter]) -> Mapping[str, float]:
    """From the return of the path to the first byte that arrives after it, at its far end."""
    back = net.cut_for(_CUT_SECONDS)
    time.sleep(max(0.0, back - time.monotonic()))
    before = {name: meter.bytes for name, meter in meters.items()}
    took: dict[str, float] = {}
    while len(took) < len(meters):
        now = time.monotonic()
        if now > back + _PATIENCE_SECONDS:
            silent = " and ".join(meters.keys() - took.keys())
            raise LoadError(f"{silent} did not go on in {_PATIENCE_SECONDS:g} s")
        on = (name for name, meter in meters.items() if meter.bytes > before[name])
        took.update({name: now - back for name in on if name not in took})
        time.sleep(_LOOK_SECONDS)
    return took
