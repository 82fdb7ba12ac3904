"""A link with the time of its own that nothing else drives."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.fakes.memory_link import memory_links
from tunnel_core.limits import Limits


async def test_an_idle_link_lives_by_its_pings(autojump_clock: MockClock) -> None:
    limits = Limits(ping_interval_seconds=1, missed_pings=2)
    async with memory_links(limits) as pair:
        await trio.sleep(60)
        assert pair.server.attached
        assert pair.agent.attached
