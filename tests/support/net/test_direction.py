"""One direction of an emulated link, with the test's own clock."""

from __future__ import annotations

import pytest

from tests.support.net.direction import Direction, Frame


def frame(name: str, size: int = 1000) -> Frame:
    return Frame(name.encode(), size)


def arrived(direction: Direction, now: float) -> str:
    return "".join(found.content.decode() for found in direction.due(now))


def test_without_limits_everything_is_due_at_once() -> None:
    direction = Direction()
    direction.offer(frame("a"), 1.0)
    assert direction.next_due() == 1.0
    assert arrived(direction, 1.0) == "a"
    assert direction.next_due() is None


def test_a_frame_takes_its_size_and_then_flies() -> None:
    direction = Direction()
    direction.set(0.0, 1000, 5.0, None)
    for name in "ab":
        direction.offer(frame(name), 10.0)
    assert direction.next_due() == 16.0
    assert arrived(direction, 15.9) == ""
    assert arrived(direction, 16.0) == "a"
    assert direction.next_due() == 17.0
    assert arrived(direction, 17.0) == "b"


def test_a_pause_is_not_saved_up() -> None:
    direction = Direction()
    direction.set(0.0, 1000, 0.0, None)
    direction.offer(frame("a"), 0.0)
    assert arrived(direction, 50.0) == "a"
    direction.offer(frame("b"), 50.0)
    assert arrived(direction, 50.9) == ""
    assert arrived(direction, 51.0) == "b"


def test_frames_without_room_are_dropped_from_the_tail() -> None:
    direction = Direction()
    direction.set(0.0, 1000, 0.0, 2500)
    for name in "abc":
        direction.offer(frame(name), 0.0)
    direction.offer(frame("d", 500), 0.0)
    assert direction.counters.dropped == 1
    assert arrived(direction, 10.0) == "abd"
    assert (direction.counters.packets, direction.counters.bytes) == (3, 2500)


def test_one_frame_always_has_room() -> None:
    direction = Direction()
    direction.set(0.0, 1000, 0.0, 10)
    direction.offer(frame("a"), 0.0)
    assert arrived(direction, 1.0) == "a"


def test_a_change_of_the_rate_holds_for_what_waits() -> None:
    direction = Direction()
    direction.set(0.0, 1000, 0.0, None)
    for name in "abc":
        direction.offer(frame(name), 0.0)
    direction.set(1.0, 100, 0.0, 1000)
    assert direction.counters.dropped == 1, "the smaller queue holds one of the two that wait"
    assert arrived(direction, 10.9) == "a"
    assert arrived(direction, 11.0) == "b"


def test_a_shorter_delay_makes_nothing_overtake() -> None:
    direction = Direction()
    direction.set(0.0, None, 5.0, None)
    direction.offer(frame("a"), 0.0)
    direction.set(1.0, None, 0.0, None)
    direction.offer(frame("b"), 1.0)
    assert arrived(direction, 4.9) == ""
    assert arrived(direction, 5.0) == "ab"


def test_a_cut_loses_what_waits_and_what_flies_and_what_comes() -> None:
    direction = Direction()
    direction.set(0.0, 1000, 5.0, None)
    for name in "ab":
        direction.offer(frame(name), 0.0)
    assert arrived(direction, 1.5) == ""
    direction.cut()
    direction.offer(frame("c"), 2.0)
    assert direction.counters.cut == 3
    direction.restore()
    direction.offer(frame("d"), 3.0)
    assert arrived(direction, 9.0) == "d"
    assert direction.next_due() is None


@pytest.mark.parametrize("limit", [None, 10_000])
def test_a_frame_of_many_packets_counts_as_many(limit: int | None) -> None:
    direction = Direction()
    direction.set(0.0, None, 0.0, limit)
    direction.offer(Frame(b"a", 9000, 6), 0.0)
    assert arrived(direction, 0.0) == "a"
    assert direction.counters.packets == 6
