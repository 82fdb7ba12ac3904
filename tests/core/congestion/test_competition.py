"""Whether another flow fills the queue of the link."""

from __future__ import annotations

from tunnel_core.congestion.competition import CompetingFlowDetector

RATE = 2.5e6


def looks(detector: CompetingFlowDetector, start: float, delays: list[float]) -> None:
    for second, delay in enumerate(delays):
        detector.update(delay, 0.05, RATE, start + second)


def test_a_short_queue_is_no_competing_flow() -> None:
    detector = CompetingFlowDetector(0.0)
    looks(detector, 0, [1.0, 1.01, 1.015, 1.005])
    assert not detector.detected


def test_a_queue_that_does_not_empty_is_a_competing_flow() -> None:
    detector = CompetingFlowDetector(0.0)
    looks(detector, 0, [1.0, 1.1])
    assert detector.detected


def test_a_queue_that_empties_now_and_then_still_is() -> None:
    detector = CompetingFlowDetector(0.0)
    looks(detector, 0, [1.0, 1.1, 1.0, 1.0, 1.0])
    assert detector.detected
    looks(detector, 5, [1.0] * 16)
    assert not detector.detected


def test_a_short_queue_is_a_competing_flow_if_the_own_rate_fell() -> None:
    detector = CompetingFlowDetector(0.0)
    looks(detector, 0, [1.0, 1.01])
    detector.update(1.01, 0.05, 0.8 * RATE, 2.0)
    assert not detector.detected
    detector.update(1.0, 0.05, 0.5 * RATE, 3.0)
    assert not detector.detected, "the link got slow"
    detector.update(1.01, 0.05, 0.5 * RATE, 4.0)
    assert detector.detected


def test_a_link_that_stays_slow_is_no_longer_suspected() -> None:
    detector = CompetingFlowDetector(0.0)
    looks(detector, 0, [1.0])
    for second in range(1, 60):
        detector.update(1.0, 0.05, 0.6 * RATE, second)
    detector.update(1.01, 0.05, 0.6 * RATE, 60.0)
    assert not detector.detected


def test_a_longer_route_stands_still() -> None:
    detector = CompetingFlowDetector(0.0)
    looks(detector, 0, [1.0] + [1.3] * 18)
    assert not detector.detected
    looks(detector, 19, [1.3, 1.4])
    assert detector.detected, "above the new route's delay"


def test_a_queue_that_moves_never_becomes_the_route() -> None:
    detector = CompetingFlowDetector(0.0)
    looks(detector, 0, [1.0] + [1.3, 1.2] * 60)
    assert detector.detected


def test_clocks_drift() -> None:
    detector = CompetingFlowDetector(0.0)
    looks(detector, 0, [1.0 + 1e-4 * second for second in range(1000)])
    assert not detector.detected
