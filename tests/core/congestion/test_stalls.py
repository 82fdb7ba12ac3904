"""The pauses of the programs: what counts as one, and how soon it is forgotten."""

from __future__ import annotations

import pytest

from tunnel_core.congestion.stalls import StallEstimator


def end_rounds(stalls: StallEstimator, count: int, *, late: float = 0.0, burst: float = 0.0) -> float:
    """End ``count`` round trips in which this end was late once, and the peer read one burst."""
    seconds = 0.0
    for _ in range(count):
        stalls.observe_late(late)
        for _ in range(4):
            stalls.observe_compression(burst / 4)
        stalls.observe_compression(0.0)
        seconds = stalls.end_round(competing=False)
    return seconds


def test_regular_pauses_of_both_ends_add_up() -> None:
    assert end_rounds(StallEstimator(), 3, late=0.09, burst=0.05) == pytest.approx(0.14)


def test_one_late_wake_is_no_regular_pause() -> None:
    stalls = StallEstimator()
    assert end_rounds(stalls, 1, late=0.09) == 0.0
    assert end_rounds(stalls, 1, late=0.09) == pytest.approx(0.09)


def test_the_two_bursts_of_a_loss_are_no_pause_of_the_peer() -> None:
    stalls = StallEstimator()
    assert end_rounds(stalls, 2, burst=0.1) == 0.0
    assert end_rounds(stalls, 6) == 0.0


def test_a_burst_longer_than_a_pause_of_a_processor_is_none() -> None:
    # It counts up to there, because its first packets may belong to a pause.
    assert end_rounds(StallEstimator(), 6, burst=0.4) <= 0.2


def test_noise_is_no_pause() -> None:
    assert end_rounds(StallEstimator(), 6, late=0.004, burst=0.019) == 0.0


def test_a_long_pause_of_this_end_counts_as_two_periods_of_a_quota() -> None:
    assert end_rounds(StallEstimator(), 6, late=3.0) == pytest.approx(0.2)


def test_pauses_are_forgotten_within_eight_round_trips() -> None:
    stalls = StallEstimator()
    end_rounds(stalls, 8, late=0.09, burst=0.05)
    assert end_rounds(stalls, 4) > 0.0
    assert end_rounds(stalls, 4) == 0.0


def test_beside_a_competing_flow_only_this_end_counts() -> None:
    stalls = StallEstimator()
    end_rounds(stalls, 7, late=0.09, burst=0.05)
    assert stalls.end_round(competing=True) == pytest.approx(0.09)
