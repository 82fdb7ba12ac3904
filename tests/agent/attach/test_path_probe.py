"""Probes of a dead path in virtual time: their pace, their bound, and what an answer starts."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tunnel_agent.attach.path_probe import Hop, PathProbe
from tunnel_core.streams.sockets import SocketStream

HOP, OTHER = ("192.0.2.1", 443), ("192.0.2.2", 443)


class Path:
    """A path with a round trip of 50 ms, which may be dead, refuse connections, or have no route."""

    def __init__(self) -> None:
        self.dead: set[Hop] = set()
        self.refused = self.no_route = False
        self.began: list[tuple[float, Hop]] = []
        self.peers: list[socket.socket] = []
        self.outstanding = self.most_outstanding = 0

    async def connect(self, address: str, port: int) -> SocketStream:
        hop = (address, port)
        self.began.append((trio.current_time(), hop))
        self.outstanding += 1
        self.most_outstanding = max(self.most_outstanding, self.outstanding)
        try:
            if self.no_route:
                raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
            if hop in self.dead:
                await trio.sleep_forever()
            await trio.sleep(0.05)
        finally:
            self.outstanding -= 1
        if self.refused:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        near, far = socket.socketpair()
        self.peers.append(far)
        return SocketStream(near)


@pytest.fixture
def path() -> Path:
    return Path()


@asynccontextmanager
async def probing(
    path: Path, on_return: Callable[[float], None], hops: Sequence[Hop] = (HOP,)
) -> AsyncIterator[PathProbe]:
    probe = PathProbe(lambda: hops, on_return, path.connect)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe.run)
        yield probe
        nursery.cancel_scope.cancel()
    for peer in path.peers:
        with peer:
            assert peer.recv(1) == b"", "a probe ends without a byte"


async def test_nothing_is_sent_until_probes_are_wanted(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with probing(path, pytest.fail):
        await trio.sleep(10)
    assert not path.began


async def test_a_path_that_comes_back_is_noticed_in_a_third_of_a_second(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    returned: list[tuple[float, float]] = []
    path.dead = {HOP}
    async with probing(path, lambda since: returned.append((since, trio.current_time()))) as probe:
        probe.enable(wanted=True)
        await trio.sleep(10)
        back = trio.current_time()
        path.dead = set()
        await trio.sleep(4)
    [(since, at)] = returned
    assert back <= since < at <= back + 0.35 + 0.05 + 0.001


async def test_a_dead_path_carries_few_probes(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    path.dead = {HOP, OTHER}
    async with probing(path, pytest.fail, [HOP, OTHER, ("192.0.2.3", 443)]) as probe:
        probe.enable(wanted=True)
        await trio.sleep(10)
    assert {hop for _, hop in path.began} == {HOP, OTHER}
    assert 2 * 10 / 0.35 <= len(path.began) <= 2 * 10 / 0.25 + 2
    assert path.most_outstanding <= 2 * 3


async def test_a_path_that_was_never_dead_starts_nothing(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with probing(path, pytest.fail) as probe:
        probe.enable(wanted=True)
        await trio.sleep(12)
    assert len(path.began) == 3, "one in five seconds, once there was an answer"


async def test_a_refusal_is_an_answer_and_starts_nothing(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path.dead, path.refused = {HOP}, True
    async with probing(path, pytest.fail) as probe:
        probe.enable(wanted=True)
        await trio.sleep(5)
        path.dead = set()
        await trio.sleep(1)
        count = len(path.began)
        await trio.sleep(4)
        assert len(path.began) == count
        path.refused = False
        await trio.sleep(10)


async def test_an_address_without_a_route_says_nothing_about_the_other(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path.dead = {OTHER}
    async with probing(path, pytest.fail, [OTHER, HOP]) as probe:
        probe.enable(wanted=True)
        await trio.sleep(20)


async def test_a_route_that_appears_is_a_path_that_is_back(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    returned: list[float] = []
    path.no_route = True
    async with probing(path, returned.append) as probe:
        probe.enable(wanted=True)
        await trio.sleep(5)
        path.no_route = False
        await trio.sleep(1)
    assert len(returned) == 1


async def test_probes_that_were_stopped_forget_the_dead_path(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path.dead = {HOP}
    async with probing(path, pytest.fail) as probe:
        probe.enable(wanted=True)
        await trio.sleep(3)
        probe.enable(wanted=False)
        await trio.sleep(3)
        count, path.dead = len(path.began), set()
        await trio.sleep(3)
        assert len(path.began) == count
        probe.enable(wanted=True)
        await trio.sleep(3)
    assert len(path.began) == count + 1
