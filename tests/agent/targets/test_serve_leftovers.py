"""Streams that the agent served or refused leave no object that only the garbage collector would free."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import pytest
import trio
import trio.testing

from tests.agent.targets.test_serve import Rig, read_all, serving
from tests.support.fakes.leftovers import left_to_the_collector, uncollected
from tests.support.net.listening import echo, listening
from tunnel_agent.network.resolver import resolve_host
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tunnel_stream import StreamReset

__all__ = ["uncollected"]
pytestmark = pytest.mark.usefixtures("uncollected")

STREAMS = 40
MOST_LEFT = 30
"""Objects that the collector may find: less than one for each stream."""


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


Visit: TypeAlias = Callable[[Rig, str], Awaitable[None]]


async def _settle(rig: Rig) -> None:
    with trio.fail_after(5):
        while list(rig.pair.server.mux_streams) or list(rig.pair.agent.mux_streams):  # noqa: ASYNC110 - no event announces it
            await trio.sleep(0.005)
    await trio.testing.wait_all_tasks_blocked(0.02)


async def _refused(rig: Rig, target: str) -> None:
    stream = rig.open(target)
    with pytest.raises(Refused):
        await stream.wait_opened()
    await stream.aclose()


async def _talk(rig: Rig, target: str) -> None:
    stream = rig.open(target)
    await stream.wait_opened()
    await stream.send_all(b"question")
    assert await stream.receive_some() == b"question"
    await stream.send_eof()
    assert await read_all(stream) == b" bye"
    await stream.aclose()


async def _leave(rig: Rig, target: str) -> None:
    stream = rig.open(target)
    await stream.wait_opened()
    await stream.send_all(b"question")
    stream.reset(Reason.USER_LEFT)
    with pytest.raises(StreamReset):
        await stream.receive_some()


@asynccontextmanager
async def _target(host: str) -> AsyncIterator[str]:
    if host == "listening":
        async with listening(echo) as address:
            yield address
    else:
        yield f"{host}:{_closed_port()}"


@pytest.mark.parametrize(
    ("host", "visit"),
    [
        ("listening", _talk),
        ("listening", _leave),
        ("127.0.0.1", _refused),
        ("localhost", _refused),
        ("10.0.0.5", _refused),
    ],
    ids=["served", "reset", "refused", "refused by name", "not allowed"],
)
async def test_a_stream_leaves_nothing_to_the_collector(host: str, visit: Visit) -> None:
    async with _target(host) as target, serving("127.0.0.1:1-65535", "localhost:1-65535") as rig:
        for count in (2, STREAMS):
            for _ in range(count):
                await visit(rig, target)
            await _settle(rig)
            left = left_to_the_collector()  # after the first ones: what any first use leaves
    assert left.total() <= MOST_LEFT, left.most_common(40)


async def test_a_failed_lookup_leaves_nothing_to_the_collector() -> None:
    name = "x" * 64 + ".test"  # too long for a label, so no resolver is asked

    async def look_up() -> None:
        with pytest.raises(socket.gaierror):
            await resolve_host(name)

    await look_up()
    left_to_the_collector()
    for _ in range(STREAMS):
        await look_up()
    left = left_to_the_collector()
    assert left.total() <= MOST_LEFT, left.most_common(40)
