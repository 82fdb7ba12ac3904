"""From a fast network to a thin one in the middle of a download: the shell is there at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.keystrokes import Typist, downloads, opened
from tests.e2e import tools
from tests.e2e.site import ECHO, SOURCE, Site
from tests.e2e.survive.doors import dial_to
from tests.e2e.waiting import wait_until
from tests.net.emulated import Emulated

MBIT = 125_000
# The short form only asks that the shell comes through: what TCP holds drains first, for up to 20 s.
FIRST_KEY_SECONDS = 1.5 if tools.is_long() else 30
ROAMS: dict[str, Callable[[Emulated], None]] = {
    "same-address": lambda net: None,
    "new-address": Emulated.change_address,
}


@pytest.mark.parametrize("roam", ROAMS)
def test_the_first_key_after_a_roam(whole: Site, net: Emulated, roam: str) -> None:
    net.set(rate=1000 * MBIT, delay_seconds=0.005, queue_seconds=0.05)
    with (
        dial_to(whole, ECHO)() as shell,
        opened(dial_to(whole, SOURCE), 1) as files,
        downloads(files) as meter,
    ):
        typist = Typist(shell)
        typist.type_for(1)
        wait_until(lambda: meter.bytes > 100 * MBIT, "the download to be at full speed")
        net.set(rate=2 * MBIT, delay_seconds=0.15, queue_seconds=0.5)
        ROAMS[roam](net)
        assert typist.type_for(0.1)[0] < FIRST_KEY_SECONDS
