"""The ring of events: bounded, ordered, followed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.counters import Counters
from tunnel_core.reasons import Reason, Refused
from tunnel_server.events import MAX_FOLLOWERS, Events

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FIRST = int(NOON.timestamp() * 1000) + 1


def ring(most: int = 5, wall: Callable[[], datetime] = lambda: NOON) -> Events:
    return Events(wall, Counters(), most=most)


def ids(events: Events, after: int, most: int = 100, node: str = "") -> list[int]:
    return [event.id - FIRST for event in events.since(after, most, node)]


def test_events_have_rising_ids_and_all_that_was_said() -> None:
    events = ring()
    events.note("attached", "edge1")
    events.note("lost", "edge1", Reason.PING_TIMEOUT, "nothing heard for 30 s")
    first, second = events.since(0, 10)
    assert (first.id, first.at, first.kind, first.node, first.reason) == (
        FIRST,
        NOON,
        "attached",
        "edge1",
        None,
    )
    assert second[2:] == ("lost", "edge1", Reason.PING_TIMEOUT, "nothing heard for 30 s")
    assert events.last == second.id == FIRST + 1


def test_the_ring_is_bounded_and_tells_a_gap() -> None:
    events = ring(most=3)
    for _ in range(5):
        events.note("attached", "edge1")
    assert ids(events, 0) == [2, 3, 4]
    assert events.has_gap(FIRST)
    assert not events.has_gap(FIRST + 1)
    assert not events.has_gap(events.last)


def test_the_newest_and_the_oldest_after() -> None:
    events = ring()
    for number in range(5):
        events.note("attached", f"edge{number % 2}")
    assert [event.id - FIRST for event in events.newest(2)] == [3, 4]
    assert [event.id - FIRST for event in events.newest(2, "edge0")] == [2, 4]
    assert ids(events, FIRST, most=2) == [1, 2]
    assert ids(events, FIRST, node="edge0") == [2, 4]


def test_a_new_run_goes_on_above_the_ids_of_the_old() -> None:
    old, later = ring(), ring(wall=lambda: NOON + timedelta(seconds=1))
    old.note("attached", "edge1")
    later.note("attached", "edge1")
    assert len(later.since(old.last, 10)) == 1
    assert later.has_gap(old.last)


def test_whoever_is_ahead_of_the_clock_gets_everything() -> None:
    events = ring()
    events.note("attached", "edge1")
    assert ids(events, events.last + 1000) == [0]
    assert events.has_gap(events.last + 1000)


@given(st.integers(0, 30), st.integers(-3, 40))
def test_since_is_what_a_slow_look_finds(noted: int, after: int) -> None:
    events = ring(most=10)
    for _ in range(noted):
        events.note("attached", "edge1")
    kept = range(max(0, noted - 10), noted)
    expected = [number for number in kept if number > after or after >= noted]
    assert ids(events, FIRST + after) == expected


def test_details_are_cut_and_kinds_are_counted() -> None:
    counters = Counters()
    events = Events(lambda: NOON, counters)
    events.note("duplicate", "edge1", None, "x" * 10_000)
    events.note("duplicate", "edge2")
    assert len(events.since(0, 1)[0].detail) == 512
    assert (counters.node_events["duplicate"], counters.node_events["expired"]) == (2, 0)
    assert len(counters.node_events) == 7


async def test_a_follower_hears_of_its_node_alone(autojump_clock: trio.testing.MockClock) -> None:
    events = ring()
    events.note("attached", "edge1")
    heard: list[str] = []

    async def follow(node: str) -> None:
        await events.wait_newer(events.last, node)
        heard.append(node)

    async with trio.open_nursery() as nursery:
        for node in ("edge1", "edge2", ""):
            nursery.start_soon(follow, node)
        await trio.testing.wait_all_tasks_blocked()
        events.note("lost", "edge2")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(heard) == ["", "edge2"]
        events.note("lost", "edge1")
    assert len(heard) == 3


async def test_what_is_there_is_not_waited_for() -> None:
    events = ring()
    events.note("attached", "edge1")
    await events.wait_newer(0)


async def test_followers_are_bounded_and_leave_no_trace() -> None:
    events = ring()
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_FOLLOWERS):
            nursery.start_soon(events.wait_newer, events.last)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Refused) as caught:
            await events.wait_newer(events.last)
        assert caught.value.reason is Reason.TOO_MANY_CONNECTIONS
        nursery.cancel_scope.cancel()
    with trio.move_on_after(0):
        await events.wait_newer(events.last)
