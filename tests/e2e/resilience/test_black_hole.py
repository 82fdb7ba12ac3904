"""The path drops every packet for ten seconds, and recovers. The streams recover, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.resilience.flows import Download, Echo, Upload, running
from tests.e2e.resilience.sockets import wait_one_connection
from tests.support.net.emulated import Emulated
from tests.support.processes import tools
from tests.support.processes.site import Site

MBIT = 125_000
CUT_SECONDS = 10
# A busy machine may take longer: `python -m bench black_hole` has the figure.
FLOOR_SECONDS = 2.0 if tools.is_long() else 6.0
# At 20 Mbit/s it takes four seconds without a cut.
TOTAL = 10 << 20


def test_streams_go_on_when_the_path_is_back(
    whole: Site, net: Emulated, record_property: Callable[[str, object], None]
) -> None:
    net.set(rate=20 * MBIT, delay_seconds=0.025, queue_seconds=0.1)
    with running(Echo(whole), Download(whole, TOTAL), Upload(whole, TOTAL)) as flows:
        back = net.cut_for(CUT_SECONDS)
        took = {flow.name: flow.wait_arrival(back, deadline_seconds=CUT_SECONDS + 15) for flow in flows}
        for flow in flows:
            flow.finish(30)
    record_property("seconds_after", {name: round(seconds, 2) for name, seconds in took.items()})
    assert max(took.values()) < FLOOR_SECONDS, took


@pytest.mark.parametrize("cut_seconds", [0.3, 3])
def test_a_short_cut_leaves_one_connection(whole: Site, net: Emulated, cut_seconds: float) -> None:
    """Attempts beside the old connection, and their send queues, are gone soon after."""
    net.set(rate=20 * MBIT, delay_seconds=0.025, queue_seconds=0.1)
    with running(Echo(whole), Download(whole, TOTAL)) as flows:
        back = net.cut_for(cut_seconds)
        for flow in flows:
            flow.wait_arrival(back, deadline_seconds=cut_seconds + 10)
        wait_one_connection(net)
        for flow in flows:
            flow.finish(30)
