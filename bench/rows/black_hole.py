"""A black hole of ten seconds: the time from its end until open streams continue."""

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
_DEADLINE_SECONDS = 30.0
_POLL_SECONDS = 0.002


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
                # Each cut begins with the streams at full speed, also after an earlier cut.
                time.sleep(2)
                warm_up({direction: meters[direction] for direction in ("download", "upload")}, line)
                rounds.append(_seconds_until_resumed(link.net, meters))
    samples = {name: [seconds[name] for seconds in rounds] for name in rounds[0]}
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


def _seconds_until_resumed(net: Emulated, meters: Mapping[str, Meter]) -> Mapping[str, float]:
    """Return the time from the end of the cut to the next byte that arrives, for each stream."""
    restored_at = net.cut_for(_CUT_SECONDS)
    time.sleep(max(0.0, restored_at - time.monotonic()))
    before = {name: meter.bytes for name, meter in meters.items()}
    seconds: dict[str, float] = {}
    while len(seconds) < len(meters):
        now = time.monotonic()
        if now > restored_at + _DEADLINE_SECONDS:
            silent = " and ".join(meters.keys() - seconds.keys())
            raise LoadError(f"{silent} did not continue in {_DEADLINE_SECONDS:g} s")
        resumed = (name for name, meter in meters.items() if meter.bytes > before[name])
        seconds.update({name: now - restored_at for name in resumed if name not in seconds})
        time.sleep(_POLL_SECONDS)
    return seconds
