"""The connection under the session breaks in every way that networks break it. The streams continue."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from tests.e2e.resilience.flows import Download, Echo, Flow, Upload, running
from tests.e2e.resilience.sockets import wait_one_connection
from tests.support.net.emulated import Emulated
from tests.support.processes.site import Site

MBIT = 125_000
MIB = 1 << 20
HARMS: dict[str, Callable[[Emulated], None]] = {
    "nat-flush": Emulated.flush_nat,
    "address-change": Emulated.change_address,
    "tcp-reset": Emulated.reset_connections,
}


@pytest.mark.parametrize("harm", HARMS)
def test_streams_go_on(whole: Site, net: Emulated, harm: str) -> None:
    net.set(rate=20 * MBIT, delay_seconds=0.025, queue_seconds=0.1)
    with running(Echo(whole), Download(whole, 10 * MIB), Upload(whole, 10 * MIB)) as flows:
        harmed_at = time.monotonic()
        HARMS[harm](net)
        # Well after the bytes that were on their way at the moment of harm.
        for flow in flows:
            flow.wait_arrival(harmed_at + 0.3, deadline_seconds=10)
        wait_one_connection(net)
        for flow in flows:
            flow.finish(30)


ECHOES = 20
SETTLED_CUTS = 5
GROWTH_BYTES = 8 * MIB


def test_a_link_that_is_cut_again_and_again(
    whole: Site, net: Emulated, long: bool, record_property: Callable[[str, object], None]
) -> None:
    """Every byte arrives once, and memory does not grow with the number of cuts."""
    cuts, total = (60, 200 * MIB) if long else (12, 60 * MIB)
    seed = time.time_ns()
    dice = random.Random(seed)  # noqa: S311 - it need only vary
    net.set(rate=32 * MBIT, delay_seconds=0.01, queue_seconds=0.1)
    echoes = [Echo(whole, pause_seconds=0.5) for _ in range(ECHOES)]
    with running(Download(whole, total), Upload(whole, total), *echoes) as flows:
        settled: dict[str, int] = {}
        for number in range(cuts):
            _cut(net, dice, flows)
            if number + 1 == SETTLED_CUTS:
                settled = _resident_bytes(whole)
        for flow in flows:
            flow.finish(240)
        wait_one_connection(net)
        grown = {name: size - settled[name] for name, size in _resident_bytes(whole).items()}
    record_property("grown_kib", {name: size >> 10 for name, size in grown.items()})
    assert max(grown.values()) <= GROWTH_BYTES, f"{grown}; seed {seed}"


def _cut(net: Emulated, dice: random.Random, flows: tuple[Flow, ...]) -> None:
    back = net.cut_for(dice.uniform(0.05, 2.5))
    if dice.random() < 0.4:
        net.flush_nat()  # otherwise TCP itself may outlive the cut, and the test would prove nothing
    # The echoes show it; the transfers may have come to their end.
    flows[-1].wait_arrival(back, deadline_seconds=15)
    time.sleep(dice.uniform(0.1, 1.0))  # how long the link works this time


def _resident_bytes(site: Site) -> dict[str, int]:
    return {program.name: program.process.resident_bytes for program in site.programs}
