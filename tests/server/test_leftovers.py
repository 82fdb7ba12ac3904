"""Ended connections of users leave no object that only the garbage collector would free."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest
import trio
import trio.testing

from tests.server.entrances.test_over_links import CONNECT, GET, OK, bind, browse, connect, echo, linked
from tests.support.fakes.edge import Edge, receive_all, receive_until
from tests.support.fakes.leftovers import left_to_the_collector, uncollected
from tests.support.fakes.memory_link import LinkPair
from tunnel_core.reasons import Reason
from tunnel_core.streams.sockets import RESET_ON_CLOSE
from tunnel_core.streams.tunnel_stream import TunnelStream

__all__ = ["uncollected"]
pytestmark = pytest.mark.usefixtures("uncollected")

USERS = 40
MOST_LEFT = 30
"""Objects that the collector may find: less than one for each user."""

Visit: TypeAlias = Callable[[trio.SocketStream], Awaitable[None]]
UNKNOWN = b"CONNECT edge9:22 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


async def refuse(stream: TunnelStream) -> None:
    stream.refuse(Reason.DIAL_REFUSED, "nobody listens")


async def answer(stream: TunnelStream) -> None:
    stream.accept("127.0.0.1:80")
    await receive_until(stream, b"\r\n\r\n")
    await stream.send_all(OK)
    await stream.send_eof()
    await stream.aclose()


async def hold(stream: TunnelStream) -> None:
    stream.accept("127.0.0.1:22")
    with trio.CancelScope() as scope, stream.cancel_on_peer_gone(scope):
        await trio.sleep_forever()
    await stream.aclose()


async def dial_for_long(stream: TunnelStream) -> None:
    with trio.CancelScope() as scope, stream.cancel_on_peer_gone(scope):
        await trio.sleep_forever()
    stream.refuse(Reason.DIAL_FAILED, "the user left")


async def tunnel(user: trio.SocketStream) -> None:
    await user.send_all(CONNECT)
    await receive_until(user, b"\r\n\r\n")
    await user.send_all(b"question")
    await receive_until(user, b"question")
    await user.send_eof()
    await receive_all(user)


async def refused(user: trio.SocketStream) -> None:
    await user.send_all(CONNECT)
    assert b" 502 " in await receive_all(user)


async def unknown(user: trio.SocketStream) -> None:
    await user.send_all(UNKNOWN)
    assert b" 404 " in await receive_all(user)


async def leave(user: trio.SocketStream) -> None:
    await user.send_all(CONNECT)
    await receive_until(user, b"\r\n\r\n")
    user.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


async def get(user: trio.SocketStream) -> None:
    await user.send_all(GET)
    await receive_until(user, b"hi")


async def bad_gateway(user: trio.SocketStream) -> None:
    await user.send_all(GET)
    assert b" 502 " in await receive_until(user, b"\r\n\r\n")


async def leave_during_the_dial(user: trio.SocketStream) -> None:
    await user.send_all(CONNECT)
    await trio.testing.wait_all_tasks_blocked(0.001)
    user.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


async def cut_off(user: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await receive_all(user)


async def talk(user: trio.SocketStream) -> None:
    await user.send_all(b"question")
    await receive_until(user, b"question")
    await user.send_eof()
    await receive_all(user)


async def _settle(pair: LinkPair) -> None:
    with trio.fail_after(5):
        while list(pair.server.mux_streams) or list(pair.agent.mux_streams):  # noqa: ASYNC110 - no event announces it
            await trio.sleep(0.005)
    await trio.testing.wait_all_tasks_blocked(0.02)


@pytest.mark.parametrize(
    ("agent", "enter", "visit"),
    [
        (echo, connect, tunnel),
        (refuse, connect, refused),
        (echo, connect, unknown),
        (hold, connect, leave),
        (answer, browse, get),
        (dial_for_long, connect, leave_during_the_dial),
        (refuse, browse, bad_gateway),
        (echo, bind, talk),
        (refuse, bind, cut_off),
    ],
    ids=lambda task: task.__name__,
)
async def test_a_visit_leaves_nothing_to_the_collector(
    agent: Callable[[TunnelStream], Awaitable[None]],
    enter: Callable[[Edge], Awaitable[trio.SocketStream]],
    visit: Visit,
) -> None:
    async with linked(agent) as (edge, pair):
        for count in (2, USERS):
            for _ in range(count):
                user = await enter(edge)
                await visit(user)
                with contextlib.suppress(trio.BrokenResourceError):
                    await user.aclose()
            del user
            await _settle(pair)
            left = left_to_the_collector()  # after the first ones: what any first use leaves
    assert left.total() <= MOST_LEFT, left.most_common(40)
