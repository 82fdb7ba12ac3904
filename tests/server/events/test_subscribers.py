"""The subscribers to events, and the metrics of events."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.support.fakes.edge import now
from tunnel_core.reasons import Reason, Refused
from tunnel_core.telemetry.counters import Counters
from tunnel_server.events.event_log import OF_SERVER, EventKind, Events
from tunnel_server.events.subscribers import MAX_FOLLOWERS, MAX_OF_USER, EventSubscribers


def test_kinds_are_counted_from_zero() -> None:
    counters = Counters()
    subscribers = EventSubscribers(Events(now), counters)
    assert counters.node_events == {kind.value: 0 for kind in EventKind if kind not in OF_SERVER}
    subscribers.events.add(EventKind.DUPLICATE, "edge1", "facade00")
    subscribers.events.add(EventKind.SERVER_STARTED, "", "")
    assert counters.node_events["duplicate"] == 1


async def test_a_subscriber_gets_events_of_its_node_only(autojump_clock: trio.testing.MockClock) -> None:
    subscribers = EventSubscribers(Events(now), Counters())
    subscribers.events.add(EventKind.ATTACHED, "edge1", "facade00")
    heard: list[str] = []

    async def follow(node: str) -> None:
        await subscribers.wait_newer(subscribers.events.last_id, node)
        heard.append(node)

    async with trio.open_nursery() as nursery:
        for node in ("edge1", "edge2", ""):
            nursery.start_soon(follow, node)
        await trio.testing.wait_all_tasks_blocked()
        subscribers.events.add(EventKind.LOST, "edge2", "facade00")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(heard) == ["", "edge2"]
        subscribers.events.add(EventKind.LOST, "edge1", "facade00")
    assert len(heard) == 3


async def test_an_existing_event_needs_no_wait() -> None:
    subscribers = EventSubscribers(Events(now), Counters())
    subscribers.events.add(EventKind.ATTACHED, "edge1", "facade00")
    await subscribers.wait_newer(0)


async def test_followers_are_bounded_and_leave_no_trace() -> None:
    subscribers = EventSubscribers(Events(now), Counters())
    async with trio.open_nursery() as nursery:
        for number in range(MAX_FOLLOWERS):
            user = f"user{number // MAX_OF_USER}"
            nursery.start_soon(subscribers.wait_newer, subscribers.events.last_id, "", user)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Refused) as caught:
            await subscribers.wait_newer(subscribers.events.last_id)
        assert caught.value.reason is Reason.TOO_MANY_CONNECTIONS
        nursery.cancel_scope.cancel()
    with trio.move_on_after(0):
        await subscribers.wait_newer(subscribers.events.last_id)


async def test_one_user_takes_a_quarter_of_the_places() -> None:
    subscribers = EventSubscribers(Events(now), Counters())
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_OF_USER):
            nursery.start_soon(subscribers.wait_newer, subscribers.events.last_id, "", "mallory")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Refused) as caught:
            await subscribers.wait_newer(subscribers.events.last_id, "", "mallory")
        assert caught.value.reason is Reason.TOO_MANY_OF_USER
        nursery.start_soon(subscribers.wait_newer, subscribers.events.last_id, "", "alice")
        await trio.testing.wait_all_tasks_blocked()
        subscribers.events.add(EventKind.LOST, "edge1", "facade00")
