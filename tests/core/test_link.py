"""A link as a whole: the time that nothing else drives, and what crosses on the wire."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.fakes.memory_link import TARGET, memory_links
from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason, Refused


async def test_an_idle_link_lives_by_its_pings(autojump_clock: MockClock) -> None:
    limits = Limits(ping_interval_seconds=1, missed_pings=2)
    async with memory_links(limits) as pair:
        await trio.sleep(60)
        assert pair.server.attached
        assert pair.agent.attached


async def test_an_open_that_crosses_the_bye_makes_no_stream(autojump_clock: MockClock) -> None:
    async with memory_links() as pair:
        pair.agent.end(Reason.PING_TIMEOUT)
        stream = pair.server.open(TARGET, user="operator", entrance="tcp")
        with pytest.raises(Refused, match=f"node {pair.server.node}"):
            await stream.wait_opened()
        await pair.agent.wait_given_up()
        assert not pair.agent.streams
        with pytest.raises(trio.WouldBlock):
            pair.opened.receive_nowait()
