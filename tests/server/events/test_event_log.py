"""The log of events: bounded, in order, with subscribers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.reasons import Reason
from tunnel_server.events.event_log import EventKind, Events

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FIRST = int(NOON.timestamp() * 1000) + 1


def event_log(most: int = 5, wall: Callable[[], datetime] = lambda: NOON) -> Events:
    return Events(wall, most=most)


def ids(events: Events, after: int, most: int = 100, node: str = "") -> list[int]:
    return [event.id - FIRST for event in events.after(after, node, most)]


def test_events_have_rising_ids_and_every_given_field() -> None:
    events = event_log()
    events.add(EventKind.ATTACHED, "edge1", "facade00")
    events.add(EventKind.LOST, "edge1", "facade00", Reason.PING_TIMEOUT, "no packet received for 30 s")
    first, second = events.after()
    assert (first.id, first.at, first.kind, first.node, first.reason) == (
        FIRST,
        NOON,
        EventKind.ATTACHED,
        "edge1",
        None,
    )
    assert (second.kind, second.reason, second.detail) == (
        EventKind.LOST,
        Reason.PING_TIMEOUT,
        "no packet received for 30 s",
    )
    assert events.last_id == second.id == FIRST + 1


def test_the_ring_is_bounded_and_reports_a_gap() -> None:
    events = event_log(most=3)
    for _ in range(5):
        events.add(EventKind.ATTACHED, "edge1", "facade00")
    assert ids(events, 0) == [2, 3, 4]
    assert events.has_gap(FIRST)
    assert not events.has_gap(FIRST + 1)
    assert not events.has_gap(events.last_id)


def test_the_newest_and_the_oldest_after() -> None:
    events = event_log()
    for number in range(5):
        events.add(EventKind.ATTACHED, f"edge{number % 2}", "facade00")
    assert [event.id - FIRST for event in events.newest(2)] == [3, 4]
    assert [event.id - FIRST for event in events.newest(2, "edge0")] == [2, 4]
    assert ids(events, FIRST, most=2) == [1, 2]
    assert ids(events, FIRST, node="edge0") == [2, 4]


def test_a_new_run_goes_on_above_the_ids_of_the_old() -> None:
    old, later = event_log(), event_log(wall=lambda: NOON + timedelta(seconds=1))
    old.add(EventKind.ATTACHED, "edge1", "facade00")
    later.add(EventKind.ATTACHED, "edge1", "facade00")
    assert len(later.after(old.last_id)) == 1
    assert later.has_gap(old.last_id)


def test_a_reader_ahead_of_the_clock_gets_everything() -> None:
    events = event_log()
    events.add(EventKind.ATTACHED, "edge1", "facade00")
    assert ids(events, events.last_id + 1000) == [0]
    assert events.has_gap(events.last_id + 1000)


@given(st.integers(0, 30), st.integers(-3, 40))
def test_since_finds_what_a_slow_search_finds(noted: int, after: int) -> None:
    events = event_log(most=10)
    for _ in range(noted):
        events.add(EventKind.ATTACHED, "edge1", "facade00")
    kept = range(max(0, noted - 10), noted)
    expected = [number for number in kept if number > after or after >= noted]
    assert ids(events, FIRST + after) == expected


def restarted(old: Events, most: int = 5) -> Events:
    """Return the log of a run a day later, with the events that the previous run stored."""
    later = event_log(most, lambda: NOON + timedelta(days=1))
    later.restore(old.after())
    return later


def test_events_of_an_earlier_run_come_first() -> None:
    old = event_log()
    for node in ("edge1", "edge2", "edge1"):
        old.add(EventKind.ATTACHED, node, "facade00")
    later = restarted(old)
    assert later.last_id > old.last_id
    later.add(EventKind.LOST, "edge1", "facade01")
    assert [event.node for event in later.newest(10)] == ["edge1", "edge2", "edge1", "edge1"]
    assert [event.kind for event in later.newest(2, "edge1")] == [EventKind.ATTACHED, EventKind.LOST]
    assert [event.kind for event in later.after(FIRST)] == [
        EventKind.ATTACHED,
        EventKind.ATTACHED,
        EventKind.LOST,
    ]
    assert len(later.after(old.last_id)) == 1
    assert not later.has_gap(old.last_id)  # a follower over the restart
    assert not later.has_gap(FIRST)
    assert later.has_gap(FIRST - 1)
    assert later.has_gap(old.last_id + 1)  # an event that was seen and never stored


def test_the_oldest_go_first_whatever_run_they_are_of() -> None:
    old = event_log()
    for _ in range(4):
        old.add(EventKind.ATTACHED, "edge1", "facade00")
    later = restarted(old)
    for _ in range(3):
        later.add(EventKind.LOST, "edge1", "facade01")
    assert [event.kind for event in later.after()] == [EventKind.ATTACHED] * 2 + [EventKind.LOST] * 3
    for _ in range(5):
        later.add(EventKind.RESUMED, "edge1", "facade01")
    assert {event.kind for event in later.after()} == {EventKind.RESUMED}
    assert later.has_gap(old.last_id)


def test_ids_rise_although_the_clock_was_set_back() -> None:
    old = event_log(wall=lambda: NOON + timedelta(days=30))
    old.add(EventKind.ATTACHED, "edge1", "facade00")
    later = restarted(old)
    later.add(EventKind.LOST, "edge1", "facade01")
    assert [event.kind for event in later.after(old.last_id)] == [EventKind.LOST]


def test_details_are_cut() -> None:
    events = event_log()
    events.add(EventKind.DUPLICATE, "edge1", "facade00", None, "x" * 10_000)
    assert len(events.after()[0].detail) == 512


def test_a_node_that_is_never_quiet_pushes_out_its_own_events_only() -> None:
    events = Events(lambda: NOON, most=50, share=3)
    events.add(EventKind.ATTACHED, "edge1", "facade00")
    events.add(EventKind.LOST, "rogue", "facade01")
    for _ in range(500):
        events.add(EventKind.TAKEN_OVER, "rogue", "facade01")
        events.add(EventKind.ATTACHED, "rogue", "facade01")
    left = events.after()
    assert [(event.node, event.kind) for event in left[:2]] == [
        ("edge1", EventKind.ATTACHED),
        ("rogue", EventKind.LOST),
    ]
    assert [event.kind for event in left[2:]] == [EventKind.TAKEN_OVER, EventKind.ATTACHED] * 3
    assert ids(events, events.last_id - 2) == [1000, 1001]
    assert events.has_gap(left[1].id)
    assert not events.has_gap(left[2].id)


def test_restored_events_keep_to_the_share() -> None:
    old = Events(lambda: NOON, most=100, share=100)
    for number in range(60):
        old.add(EventKind.ATTACHED, "rogue" if number else "edge1", "facade00")
    events = Events(lambda: NOON + timedelta(days=1), most=50, share=3)
    events.restore(old.after())
    assert [event.node for event in events.after()] == ["edge1", *["rogue"] * 3]
