"""The kernel's route messages: the watcher uses those about the route to the server only."""

from __future__ import annotations

import subprocess
import time

from tests.e2e.resilience.sockets import wait_one_connection
from tests.support.net.emulated import Emulated
from tests.support.processes.site import Site
from tests.support.processes.waiting import wait_until

PAIRS = 100
# An attempt may be put off for that long, as there is at most one in five seconds for news from the kernel.
PUT_OFF_SECONDS = 6
ATTEMPT_SECONDS = 1.0


def test_unrelated_interfaces_come_and_go(whole: Site, net: Emulated) -> None:
    wait_one_connection(net)
    before = net.dials()
    for number in range(PAIRS):
        _ip(
            net,
            f"link add a{number} type veth peer name b{number}",
            f"addr add 10.77.{number}.1/24 dev a{number}",
            f"link set a{number} up",
            f"link set b{number} up",
        )
    for number in range(PAIRS):
        _ip(net, f"link del a{number}")
    time.sleep(PUT_OFF_SECONDS)
    assert net.dials() == before
    whole.check_request()


def test_another_default_route_is_tried_at_once(whole: Site, net: Emulated) -> None:
    wait_one_connection(net)
    with whole.server.connect("edge1:2201") as user:
        assert user.echoes(b"before")
        before = net.dials()
        net.change_route()
        wait_until(lambda: net.dials() > before, "an attempt", deadline_seconds=ATTEMPT_SECONDS)
        # The new carrier answers, and the old one is given up though it still worked.
        wait_one_connection(net)
        assert user.echoes(b"after")


def _ip(net: Emulated, *commands: str) -> None:
    argv = net.edge.argv(["ip", "-batch", "-"])
    subprocess.run(argv, input="\n".join(commands), text=True, check=True, timeout=30)  # noqa: S603
