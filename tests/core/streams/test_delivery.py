"""How long a reset waits for bytes that the peer has not received."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from tunnel_core.streams.delivery import wait_delivered
from tunnel_core.streams.sockets import SocketStream


class Slow(SocketStream):
    """Its peer acknowledges as ``left`` says, by the seconds since the start."""

    def __init__(self, left: Callable[[float], int]) -> None:
        self._left = left
        self._start = trio.current_time()

    @property
    def undelivered(self) -> int:
        return self._left(trio.current_time() - self._start)


@pytest.mark.parametrize(
    ("left", "seconds"),
    [
        pytest.param(lambda _: 0, 0, id="nothing was left"),
        pytest.param(lambda at: 100 if at < 0.5 else 0, 0.5, id="the peer received all"),
        pytest.param(lambda _: 100, 1, id="the peer receives nothing"),
        pytest.param(lambda at: 1000 - int(at * 10), 5, id="the peer is too slow"),
    ],
)
async def test_it_waits_for_the_peer_within_bounds(
    left: Callable[[float], int], seconds: float, autojump_clock: MockClock
) -> None:
    start = trio.current_time()
    await wait_delivered(Slow(left))
    assert trio.current_time() - start == pytest.approx(seconds, abs=0.05)
