"""From a fast network to a slow one in the middle of a download: the shell answers at once.

docs/congestion.md counts what a first key takes at best. The roam that people make is to another network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from bench.keystrokes import Typist, downloads, opened
from tests.e2e.resilience.doors import dial_to
from tests.support.net.emulated import Emulated
from tests.support.processes import tools
from tests.support.processes.site import ECHO, SOURCE, Site
from tests.support.processes.waiting import wait_until

MBIT = 125_000
SLACK_SECONDS = 0.0 if tools.is_long() else 3.0
"""A busy machine is late."""


def thin(net: Emulated) -> None:
    net.set(rate=2 * MBIT, delay_seconds=0.15, queue_seconds=0.5)


def to_another_network(net: Emulated) -> None:
    """Change the network. Packets on their way are lost, because the old network ends first."""
    net.cut()
    net.lose_address()
    thin(net)
    net.restore()
    net.change_route()


def to_another_address(net: Emulated) -> None:
    """Make the same link slow and change the address, with half a second of old bytes in the way.

    If the queue has no room for the first packet, TCP retransmits it after a second.
    """
    thin(net)
    net.change_address()


class Roam(NamedTuple):
    make: Callable[[Emulated], None]
    first_key_seconds: float


ROAMS = {
    # First, as there is one move in ten seconds away from a carrier that still brings something.
    "same-address": Roam(thin, 3.0),
    "another-network": Roam(to_another_network, 1.5),
    "another-address": Roam(to_another_address, 3.5),
}


@pytest.mark.parametrize("name", ROAMS)
def test_the_first_key_after_a_roam(
    whole: Site, net: Emulated, name: str, record_property: Callable[[str, object], None]
) -> None:
    net.set(rate=1000 * MBIT, delay_seconds=0.005, queue_seconds=0.05)
    with (
        dial_to(whole, ECHO)() as shell,
        opened(dial_to(whole, SOURCE), 1) as files,
        downloads(files) as meter,
    ):
        typist = Typist(shell)
        typist.type_for(3)  # what an answer takes here is known after some pings
        wait_until(lambda: meter.bytes > 100 * MBIT, "the download to be at full speed")
        ROAMS[name].make(net)
        took = typist.type_for(0.1)[0]
    record_property("first_key_seconds", round(took, 2))
    assert took < ROAMS[name].first_key_seconds + SLACK_SECONDS
