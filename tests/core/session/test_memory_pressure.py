"""Memory that stalled readers hold is reclaimed from the largest of them only."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.mux.mux import Mux
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason
from tunnel_core.session.memory_pressure import StallWatch, relieve_pressure
from tunnel_core.wire.frames import Data, Open

LIMITS = Limits(initial_credit=100, max_credit=800, credit_pool=10_000, stall_seconds=30)


class Site:
    """A mux with streams whose windows have grown; tests press on the pool by hand."""

    def __init__(self) -> None:
        self.pool = CreditPool(LIMITS.credit_pool)
        self.streams: list[StreamState] = []
        self.mux = Mux(LIMITS, self.pool, opener=False, on_open=self.streams.append)
        for number in (1, 3, 5):
            self.mux.receive(Open(number, "localhost:22", "operator", "tcp", 100))
        for stream in self.streams:
            while stream.recv.window < LIMITS.max_credit:
                self.arrive(stream, 50)
                stream.read(50)

    def arrive(self, stream: StreamState, size: int) -> None:
        self.mux.receive(Data(stream.number, stream.recv.received, b"x" * size))

    def press(self) -> None:
        self.pool.granted = LIMITS.credit_pool


@pytest.fixture
def site() -> Site:
    return Site()


def test_the_largest_that_stands_still_is_found(site: Site) -> None:
    small, large, reading = site.streams
    for stream, size in ((small, 200), (large, 400), (reading, 700)):
        site.arrive(stream, size)
    site.press()
    watch = StallWatch(site.pool, 30)
    assert watch.find_victim(site.streams, 0) is None
    reading.read(10)
    assert watch.find_victim(site.streams, 29) is None
    assert watch.find_victim(site.streams, 31) is large


def test_without_pressure_no_stream_is_reset(site: Site) -> None:
    site.arrive(site.streams[0], 500)
    watch = StallWatch(site.pool, 30)
    assert watch.find_victim(site.streams, 0) is None
    assert watch.find_victim(site.streams, 1000) is None


def test_an_idle_stream_is_not_stalled(site: Site) -> None:
    site.press()
    watch = StallWatch(site.pool, 30)
    assert watch.find_victim(site.streams, 0) is None
    assert watch.find_victim(site.streams, 1000) is None


async def test_a_stalled_stream_is_reset_with_its_reason(
    site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    site.arrive(site.streams[0], 300)
    site.press()
    with trio.move_on_after(45):
        await relieve_pressure(site.pool, lambda: site.streams, LIMITS)
    reasons = [stream.reset_reason for stream in site.streams]
    assert reasons == [Reason.STALLED_UNDER_PRESSURE, None, None]
