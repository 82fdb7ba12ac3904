"""Ended streams leave no object that only the garbage collector would free.

The collector visits old objects rarely, and until then each stream in a reference cycle takes kilobytes.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import pytest
import trio
import trio.testing

from tests.support.fakes.leftovers import left_to_the_collector, uncollected
from tests.support.fakes.memory_link import TARGET, LinkPair, memory_links
from tunnel_core.limits import KIB
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.relay import relay
from tunnel_core.streams.sockets import SocketStream
from tunnel_core.streams.tunnel_stream import StreamReset, TunnelStream

__all__ = ["uncollected"]
pytestmark = pytest.mark.usefixtures("uncollected")

STREAMS = 100
MOST_LEFT = 50
"""Objects that the collector may find: less than one for each stream."""

End: TypeAlias = Callable[[LinkPair], Awaitable[None]]


async def _open(pair: LinkPair) -> tuple[TunnelStream, TunnelStream]:
    return pair.server.open(TARGET, user="operator", entrance="tcp"), await pair.opened.receive()


async def _close(*streams: TunnelStream) -> None:
    for stream in streams:
        await stream.aclose()


async def finished(pair: LinkPair) -> None:
    near, far = await pair.streams()
    await near.send_all(b"question")
    await near.send_eof()
    assert await far.receive_some() == b"question"
    assert await far.receive_some() == b""
    await far.send_all(b"answer")
    await _close(far)
    assert await near.receive_some() == b"answer"
    await _close(near)


async def refused(pair: LinkPair) -> None:
    near, far = await _open(pair)
    far.refuse(Reason.DIAL_REFUSED, "nobody listens")
    with pytest.raises(Refused):
        await near.wait_opened()
    await _close(near)


async def reset_at_this_end(pair: LinkPair) -> None:
    near, far = await pair.streams()
    near.reset(Reason.USER_LEFT)
    with pytest.raises(StreamReset):
        await far.receive_some()
    await _close(near, far)


async def reset_at_the_other_end_while_both_directions_wait(pair: LinkPair) -> None:
    near, far = await pair.streams()

    async def send() -> None:
        with pytest.raises(StreamReset):
            await near.send_all(bytes(1024 * KIB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        far.reset(Reason.TARGET_RESET)
        with pytest.raises(StreamReset):
            await near.receive_some()
    await _close(near, far)


async def reset_before_the_open_was_sent(pair: LinkPair) -> None:
    stream = pair.server.open(TARGET, user="operator", entrance="tcp", early_data=b"GET /")
    assert not stream.open_sent
    stream.reset(Reason.USER_LEFT)


async def a_user_who_left_during_the_dial(pair: LinkPair) -> None:
    near, far = await _open(pair)
    near.reset(Reason.USER_LEFT)
    with trio.CancelScope() as dial, far.cancel_on_peer_gone(dial):
        await trio.sleep_forever()
    far.reset(Reason.USER_LEFT)


async def a_cancelled_sender(pair: LinkPair) -> None:
    near, far = await pair.streams()
    with trio.move_on_after(0.001):
        async with near:
            await near.send_all(bytes(1024 * KIB))
    with pytest.raises(StreamReset):
        while True:
            await far.receive_some()
    await _close(far)


@dataclass
class Relayed:
    """user - relay - link - relay - target, as in the two programs."""

    user: SocketStream
    target: SocketStream
    near: TunnelStream


@asynccontextmanager
async def _relayed(pair: LinkPair) -> AsyncIterator[Relayed]:
    user, entrance = map(SocketStream, socket.socketpair())
    dialled, target = map(SocketStream, socket.socketpair())
    near, far = await pair.streams()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, entrance, near)
        nursery.start_soon(relay, far, dialled)
        yield Relayed(user, target, near)
    user.abort()
    target.abort()


async def relayed_to_the_end(pair: LinkPair) -> None:
    async with _relayed(pair) as ends:
        await ends.user.send_all(b"question")
        assert await ends.target.receive_some() == b"question"
        await ends.target.send_all(b"answer")
        assert await ends.user.receive_some() == b"answer"
        await ends.user.aclose()
        await ends.target.aclose()


async def relayed_until_the_user_broke_off(pair: LinkPair) -> None:
    async with _relayed(pair) as ends:
        await ends.user.send_all(b"question")
        await ends.target.receive_some()
        ends.user.abort()
        with contextlib.suppress(trio.BrokenResourceError):
            await ends.target.receive_some()
        ends.target.abort()


async def relayed_until_it_was_reset(pair: LinkPair) -> None:
    async with _relayed(pair) as ends:
        await ends.target.send_all(b"hello")
        await ends.user.receive_some()
        ends.near.reset(Reason.REVOKED)


ENDS: list[End] = [
    finished,
    refused,
    reset_at_this_end,
    reset_at_the_other_end_while_both_directions_wait,
    reset_before_the_open_was_sent,
    a_user_who_left_during_the_dial,
    a_cancelled_sender,
    relayed_to_the_end,
    relayed_until_the_user_broke_off,
    relayed_until_it_was_reset,
]


async def _settle(pair: LinkPair) -> None:
    """Wait until all frames of the streams are acknowledged."""
    with trio.fail_after(5):
        while list(pair.server.mux_streams) or list(pair.agent.mux_streams):  # noqa: ASYNC110 - no event announces it
            await trio.sleep(0.005)
    await trio.testing.wait_all_tasks_blocked(0.02)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_leaves_nothing_to_the_collector(end: End) -> None:
    async with memory_links() as pair:
        await end(pair)
        await _settle(pair)
        left_to_the_collector()  # what the first use of anything left
        for _ in range(STREAMS):
            await end(pair)
        await _settle(pair)
        left = left_to_the_collector()
    assert left.total() <= MOST_LEFT, left.most_common(40)
    assert not [kind for kind in left if kind.startswith("tunnel_core.")], left


async def test_a_session_that_ends_leaves_nothing_of_its_streams() -> None:
    async with memory_links() as pair:
        streams = [await pair.streams() for _ in range(STREAMS)]
        left_to_the_collector()
        pair.server.end(Reason.SERVER_STOPPING)
        while streams:
            near, far = streams.pop()
            with pytest.raises(StreamReset):
                await near.receive_some()
            with pytest.raises(StreamReset):
                await far.receive_some()
            await _close(near, far)
        del near, far
        left = left_to_the_collector()
    assert left.total() <= MOST_LEFT, left.most_common(40)
