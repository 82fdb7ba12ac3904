"""Whether the queue on the way is somebody else's."""

from __future__ import annotations

from tunnel_core.congestion.competition import CompetingFlowDetector

RATE = 2.5e6


def looks(rivals: CompetingFlowDetector, start: float, delays: list[float]) -> None:
    for second, delay in enumerate(delays):
        rivals.update(delay, 0.05, RATE, start + second)


def test_a_little_that_waits_is_nobody() -> None:
    rivals = CompetingFlowDetector(0.0)
    looks(rivals, 0, [1.0, 1.01, 1.015, 1.005])
    assert not rivals.detected


def test_a_queue_that_does_not_empty_is_a_rival() -> None:
    rivals = CompetingFlowDetector(0.0)
    looks(rivals, 0, [1.0, 1.1])
    assert rivals.detected


def test_a_queue_that_empties_now_and_then_still_is() -> None:
    rivals = CompetingFlowDetector(0.0)
    looks(rivals, 0, [1.0, 1.1, 1.0, 1.0, 1.0])
    assert rivals.detected
    looks(rivals, 5, [1.0] * 16)
    assert not rivals.detected


def test_a_short_queue_is_a_rivals_if_our_rate_fell() -> None:
    rivals = CompetingFlowDetector(0.0)
    looks(rivals, 0, [1.0, 1.01])
    rivals.update(1.01, 0.05, 0.8 * RATE, 2.0)
    assert not rivals.detected
    rivals.update(1.0, 0.05, 0.5 * RATE, 3.0)
    assert not rivals.detected, "the link got slow"
    rivals.update(1.01, 0.05, 0.5 * RATE, 4.0)
    assert rivals.detected


def test_a_link_that_stays_slow_is_no_longer_suspected() -> None:
    rivals = CompetingFlowDetector(0.0)
    looks(rivals, 0, [1.0])
    for second in range(1, 60):
        rivals.update(1.0, 0.05, 0.6 * RATE, second)
    rivals.update(1.01, 0.05, 0.6 * RATE, 60.0)
    assert not rivals.detected


def test_a_longer_route_stands_still() -> None:
    rivals = CompetingFlowDetector(0.0)
    looks(rivals, 0, [1.0] + [1.3] * 18)
    assert not rivals.detected
    looks(rivals, 19, [1.3, 1.4])
    assert rivals.detected, "above the new route's delay"


def test_a_queue_that_moves_never_becomes_the_route() -> None:
    rivals = CompetingFlowDetector(0.0)
    looks(rivals, 0, [1.0] + [1.3, 1.2] * 60)
    assert rivals.detected


def test_clocks_drift() -> None:
    rivals = CompetingFlowDetector(0.0)
    looks(rivals, 0, [1.0 + 1e-4 * second for second in range(1000)])
    assert not rivals.detected
