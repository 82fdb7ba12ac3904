"""An ended session and a refused attach leave no object of Qanat to the garbage collector."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.support.fakes.garbage import collected, no_collector  # noqa: F401 - a fixture
from tests.support.fakes.memory_carrier import MemoryCarrier, memory_carriers
from tests.support.fakes.memory_link import TARGET, LinkPair, attach_links, hello, welcome
from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import AgentHandshake, ServerHandshake
from tunnel_core.wire.frames import Hello, Rejected, Welcome

TIMES = 3


pytestmark = pytest.mark.usefixtures("no_collector")


def test_a_cycle_would_be_found() -> None:
    def keep_a_cycle() -> None:
        handshake = ServerHandshake(lambda _: welcome(Limits()) if handshake else None)  # type: ignore[arg-type,return-value]

    keep_a_cycle()
    assert collected() == {"ServerHandshake": 1}


# Sessions.


async def live(end: Callable[[LinkPair], Awaitable[None]]) -> None:
    """One session with a stream each way, and its end."""
    async with trio.open_nursery() as nursery:
        pair = await attach_links(nursery, *memory_carriers(nursery), Limits())
        near, far = await pair.streams()
        await near.send_all(b"question")
        assert await far.receive_some() == b"question"
        waiting = pair.server.open(TARGET, user="operator", entrance="tcp")
        await end(pair)
        for stream in (near, far, waiting):
            stream.reset(Reason.USER_LEFT)
        nursery.cancel_scope.cancel()


async def say_bye(pair: LinkPair) -> None:
    pair.server.end(Reason.SERVER_STOPPING)
    await pair.agent.wait_ended()
    await pair.server.wait_given_up()
    await pair.agent.wait_given_up()


async def lose_the_carrier(pair: LinkPair) -> None:
    assert isinstance(pair.carriers[0], MemoryCarrier)
    pair.carriers[0].cut()
    await pair.server.wait_given_up()
    await pair.agent.wait_given_up()


async def break_the_protocol(pair: LinkPair) -> None:
    pair.server.packet_received(b"\xff")
    await pair.agent.wait_ended()
    await pair.server.wait_given_up()


async def give_up(_: LinkPair) -> None:
    """Do nothing: the end of the block cancels both sessions."""


@pytest.mark.parametrize("end", [say_bye, lose_the_carrier, break_the_protocol, give_up])
async def test_an_ended_session(
    end: Callable[[LinkPair], Awaitable[None]], autojump_clock: MockClock
) -> None:
    await live(end)
    collected()
    for _ in range(TIMES):
        await live(end)
    await trio.sleep(1)
    assert collected() == {}


# Attaches.


async def attach(
    offer: Callable[[Hello], Welcome | Rejected],
    decide: Callable[[Attachment], None],
    during: Callable[[Attachment, Attachment], None],
) -> None:
    async with trio.open_nursery() as nursery:
        near, far = memory_carriers(nursery)
        server = Attachment(near, ServerHandshake(offer), decide)
        agent = Attachment(far, AgentHandshake(hello(Limits())))
        during(server, agent)

        async def settle(attempt: Attachment) -> None:
            with contextlib.suppress(Refused):
                await attempt.settle(10, 2)

        nursery.start_soon(settle, server)
        await settle(agent)
        await trio.sleep(20)
        agent.abandon()
        await trio.sleep(1)
        nursery.cancel_scope.cancel()


def no_decision(_: Attachment) -> None:
    """Leave the attachment unused."""


def is_stale(_: Attachment) -> None:
    raise Refused(Reason.STALE_ATTEMPT)


def offered(_: Hello) -> Welcome:
    return welcome(Limits())


def offered_and_used(_: Hello) -> Welcome:
    return welcome(Limits())._replace(used=True)


def rejected(_: Hello) -> Rejected:
    return Rejected(Reason.TOO_MANY_SESSIONS, "full", 5000)


def refused(_: Hello) -> Rejected:
    raise Refused(Reason.SESSION_MISMATCH)


def faulty(_: Hello) -> Rejected:
    raise LookupError("a fault of ours")


def nothing(server: Attachment, agent: Attachment) -> None:
    """Do nothing during the attach."""


def displace(server: Attachment, agent: Attachment) -> None:
    server.displace(Refused(Reason.TOO_MANY_ATTACHES))


def refuse(server: Attachment, agent: Attachment) -> None:
    server.refuse(Refused(Reason.REVOKED), 1000)


@pytest.mark.parametrize(
    ("offer", "decide", "during"),
    [
        (offered, no_decision, nothing),
        (offered_and_used, is_stale, nothing),
        (rejected, no_decision, nothing),
        (refused, no_decision, nothing),
        (faulty, no_decision, nothing),
        (offered, no_decision, displace),
        (offered, no_decision, refuse),
    ],
)
async def test_an_attach_that_comes_to_nothing(
    offer: Callable[[Hello], Welcome | Rejected],
    decide: Callable[[Attachment], None],
    during: Callable[[Attachment, Attachment], None],
    autojump_clock: MockClock,
) -> None:
    await attach(offer, decide, during)
    collected()
    for _ in range(TIMES):
        await attach(offer, decide, during)
    assert collected() == {}
