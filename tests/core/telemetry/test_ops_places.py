"""Which connection the ops listener closes for a new one, with the test's own clock."""

from __future__ import annotations

from tunnel_core.telemetry.ops_places import MAX_CONNECTIONS, PROBE_PLACES, Place, Places


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


def take(places: Places, source: str) -> Place:
    place = places.take(source)
    assert place is not None
    return place


def fill(places: Places, source: str, number: int = MAX_CONNECTIONS) -> list[Place]:
    return [take(places, source) for _ in range(number)]


def test_the_longest_idle_of_the_largest_source_gives_way() -> None:
    clock = Clock()
    places = Places(clock)
    small = take(places, "192.0.2.1")
    clock.seconds += 1
    first, second, *_ = fill(places, "192.0.2.2", MAX_CONNECTIONS - 1)
    evicted: list[str] = []
    first.on_evicted = lambda: evicted.append("first")
    clock.seconds += 1
    newcomer = take(places, "192.0.2.3")
    assert evicted == ["first"] and first.was_evicted
    assert not newcomer.is_for_probes
    assert not small.was_evicted and not second.was_evicted


def test_recent_and_served_connections_keep_their_places() -> None:
    clock = Clock()
    places = Places(clock)
    held = fill(places, "192.0.2.2")
    clock.seconds += 0.9
    assert take(places, "192.0.2.3").is_for_probes
    for place in held:
        place.busy()
    clock.seconds += 100
    assert take(places, "192.0.2.3").is_for_probes
    held[7].idle()
    clock.seconds += 1
    assert not take(places, "192.0.2.3").is_for_probes
    assert [place for place in held if place.was_evicted] == [held[7]]


def test_a_source_takes_no_place_from_one_that_holds_no_more() -> None:
    clock = Clock()
    places = Places(clock, most=4, for_probes=0)
    mine, others = fill(places, "192.0.2.1", 2), fill(places, "192.0.2.2", 2)
    clock.seconds += 5
    take(places, "192.0.2.1")
    assert mine[0].was_evicted, "of its own source"
    assert not any(place.was_evicted for place in others)
    for place in mine[1:]:
        place.busy()
    clock.seconds += 5
    taken = take(places, "192.0.2.3")
    assert others[0].was_evicted, "the one that waits longest, where sources hold as many"
    taken.busy()


def test_probes_of_another_source_come_in_whatever_one_source_does() -> None:
    places = Places(Clock())
    for place in fill(places, "192.0.2.2"):
        place.busy()
    for _ in range(1_000):
        take(places, "192.0.2.2")
    probe = take(places, "192.0.2.3")
    assert probe.is_for_probes
    for _ in range(1_000):
        take(places, "192.0.2.2")
    assert not probe.was_evicted


def test_places_come_back() -> None:
    places = Places(Clock(), most=1, for_probes=1)
    first, second = take(places, "a"), take(places, "a")
    first.busy(), second.busy()
    assert places.take("b") is None
    second.leave()
    second.leave()
    assert take(places, "b").is_for_probes
    first.leave()
    assert not take(places, "b").is_for_probes
    assert PROBE_PLACES > 1
