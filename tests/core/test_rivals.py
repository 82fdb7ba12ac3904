"""Whether the queue on the way is somebody else's."""

from __future__ import annotations

from tunnel_core.rivals import Rivals


def looks(rivals: Rivals, start: float, delays: list[float]) -> None:
    for second, delay in enumerate(delays):
        rivals.look(delay, 0.05, start + second)


def test_a_little_that_waits_is_nobody() -> None:
    rivals = Rivals(0.0)
    looks(rivals, 0, [1.0, 1.01, 1.015, 1.005])
    assert not rivals.present


def test_a_queue_that_does_not_empty_is_a_rival() -> None:
    rivals = Rivals(0.0)
    looks(rivals, 0, [1.0, 1.1])
    assert rivals.present


def test_a_queue_that_empties_now_and_then_still_is() -> None:
    rivals = Rivals(0.0)
    looks(rivals, 0, [1.0, 1.1, 1.0, 1.0, 1.0])
    assert rivals.present
    looks(rivals, 5, [1.0] * 10)
    assert not rivals.present


def test_a_longer_route_stands_still() -> None:
    rivals = Rivals(0.0)
    looks(rivals, 0, [1.0] + [1.3] * 18)
    assert not rivals.present
    looks(rivals, 19, [1.3, 1.4])
    assert rivals.present, "above the new route's delay"


def test_a_queue_that_moves_never_becomes_the_route() -> None:
    rivals = Rivals(0.0)
    looks(rivals, 0, [1.0] + [1.3, 1.2] * 60)
    assert rivals.present


def test_clocks_drift() -> None:
    rivals = Rivals(0.0)
    looks(rivals, 0, [1.0 + 1e-4 * second for second in range(1000)])
    assert not rivals.present
