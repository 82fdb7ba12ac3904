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
from tests.server.nodes.test_attach import AgentsPort, open_agents_port
from tests.server.nodes.test_attach_budget import USER
from tests.support.fakes.garbage import collected, no_collector  # noqa: F401 - a fixture
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.handshake import VERSION
from tunnel_server.auth.revocation_list import RevocationKind

pytestmark = pytest.mark.usefixtures("no_collector")


async def come_and_go(agents_port: AgentsPort) -> None:
    agent = await agents_port.attach("edge1")
    stream = await agents_port.open("edge1")
    for one in (stream, *agent.session.streams.values()):
        one.reset(Reason.USER_LEFT)
    agent.session.end(Reason.AGENT_STOPPING)
    await agent.session.wait_given_up()
    del agent.session  # the fake has a callback that leads back to itself


async def lose_the_carrier(agents_port: AgentsPort) -> None:
    agent = await agents_port.attach("edge1")
    agent.carrier.cut()
    await agent.end()
    del agent.session


async def come_in_vain(agents_port: AgentsPort, **changes: Any) -> None:
    with contextlib.suppress(Refused):
        await agents_port.dial("edge1", **changes).welcomed()


async def be_no_node(agents_port: AgentsPort) -> None:
    await come_in_vain(agents_port, leaf_pem=USER)


async def be_revoked(agents_port: AgentsPort) -> None:
    agents_port.revoke(RevocationKind.NODE, "edge1")
    await come_in_vain(agents_port)


async def speak_another_version(agents_port: AgentsPort) -> None:
    await come_in_vain(agents_port, version=VERSION + 1)


async def say_nothing(agents_port: AgentsPort) -> None:
    agents_port.dial("edge1")


async def only_check(agents_port: AgentsPort) -> None:
    agent = agents_port.dial("edge1")
    await agent.welcomed()
    agent.attempt.abandon()


async def be_displaced(agents_port: AgentsPort) -> None:
    for _ in range(agents_port.limits.max_attaches_per_identity + 1):
        agents_port.dial("edge1")


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
    visit: Callable[[AgentsPort], Awaitable[None]], autojump_clock: MockClock
) -> None:
    async with open_agents_port() as agents_port:
        for _ in range(3):
            collected()  # what a visit of before has left to the tasks of the test
            await visit(agents_port)
            await trio.sleep(20)
        assert collected() == {}


async def test_an_agent_keeps_nothing_of_a_session_that_it_resumed(autojump_clock: MockClock) -> None:
    async with open_site() as site:
        for _ in range(3):
            collected()
            near, far = await site.streams()
            lose_all(site)
            await site.pass_time(3)
            assert site.session.attached
            near.reset(Reason.USER_LEFT)
            far.reset(Reason.USER_LEFT)
            site.far.clear()
            del near, far
            site.session.end(Reason.TAKEN_OVER)
            await site.pass_time(5)
            assert site.session.attached, "with its next session"
        assert collected().keys() <= {"Peer"}, "of the fake's carriers, whose two ends know each other"
