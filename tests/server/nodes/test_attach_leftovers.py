"""Objects that attaches and sessions leave to the garbage collector of a server, and of a resuming agent."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.resume.site import open_site
from tests.resume.test_resume import lose_all
from tests.server.nodes.test_attach import Door, open_door
from tests.server.nodes.test_attach_budget import USER
from tests.support.fakes.garbage import collected, no_collector  # noqa: F401 - a fixture
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.handshake import VERSION
from tunnel_server.auth.revocation_list import RevocationKind

pytestmark = pytest.mark.usefixtures("no_collector")


async def come_and_go(door: Door) -> None:
    agent = await door.attach("edge1")
    stream = await door.open("edge1")
    for one in (stream, *agent.link.streams.values()):
        one.reset(Reason.USER_LEFT)
    agent.link.end(Reason.AGENT_STOPPING)
    await agent.link.wait_given_up()
    del agent.link  # the fake has a callback that leads back to itself


async def lose_the_carrier(door: Door) -> None:
    agent = await door.attach("edge1")
    agent.carrier.cut()
    await agent.end()
    del agent.link


async def come_in_vain(door: Door, **changes: Any) -> None:
    with contextlib.suppress(Refused):
        await door.dial("edge1", **changes).welcomed()


async def be_no_node(door: Door) -> None:
    await come_in_vain(door, leaf_pem=USER)


async def be_revoked(door: Door) -> None:
    door.revoke(RevocationKind.NODE, "edge1")
    await come_in_vain(door)


async def speak_another_version(door: Door) -> None:
    await come_in_vain(door, version=VERSION + 1)


async def say_nothing(door: Door) -> None:
    door.dial("edge1")


async def only_check(door: Door) -> None:
    agent = door.dial("edge1")
    await agent.welcomed()
    agent.attempt.abandon()


async def be_displaced(door: Door) -> None:
    for _ in range(door.limits.max_attaches_per_identity + 1):
        door.dial("edge1")


@pytest.mark.parametrize(
    "visit",
    [
        come_and_go,
        lose_the_carrier,
        be_no_node,
        be_revoked,
        speak_another_version,
        say_nothing,
        only_check,
        be_displaced,
    ],
)
async def test_a_server_keeps_nothing_of_a_visit(
    visit: Callable[[Door], Awaitable[None]], autojump_clock: MockClock
) -> None:
    async with open_door() as door:
        for _ in range(3):
            collected()  # what a visit of before has left to the tasks of the test
            await visit(door)
            await trio.sleep(20)
        assert collected() == {}


async def test_an_agent_keeps_nothing_of_a_session_that_it_resumed(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        for _ in range(3):
            collected()
            near, far = await site.streams()
            lose_all(site)
            await site.pass_time(3)
            assert site.link.attached
            near.reset(Reason.USER_LEFT)
            far.reset(Reason.USER_LEFT)
            site.far.clear()
            del near, far
            site.link.end(Reason.TAKEN_OVER)
            await site.pass_time(5)
            assert site.link.attached, "with its next session"
        assert collected().keys() <= {"Peer"}, "of the fake's carriers, whose two ends know each other"
