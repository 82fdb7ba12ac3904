"""The bandwidth probe: fast where that is safe, slow near the link's rate, ended by the first queue."""

from __future__ import annotations

import pytest

from tunnel_core.congestion.probing import BandwidthProbe

PATH, SLACK = 0.3, 0.015
RATE = 250_000.0
STANDING, EMPTY = 0.012, 0.0


def stopped(rate: float = RATE) -> BandwidthProbe:
    """Return a probe that found the link's rate."""
    growth = BandwidthProbe()
    for _ in range(2):
        growth.observe_queue(STANDING, SLACK, rate, trusted=True)
    assert not growth.active
    return growth


def empty_rounds(growth: BandwidthProbe, rate: float) -> int:
    """Return how many round trips without a queue the probe needs before it grows again."""
    for count in range(1, 20):
        growth.end_round(EMPTY, SLACK, rate)
        if growth.active:
            return count
    pytest.fail("it never grows again")


def test_a_new_carrier_doubles() -> None:
    growth = BandwidthProbe()
    assert growth.in_startup
    assert growth.gain(10_000, PATH) == 1.0


def test_probing_ends_with_the_second_queued_sample_in_a_row() -> None:
    growth = BandwidthProbe()
    for queue in (STANDING, EMPTY, STANDING):
        growth.observe_queue(queue, SLACK, RATE, trusted=True)
        assert growth.active
    growth.observe_queue(STANDING, SLACK, RATE, trusted=True)
    assert not growth.active
    assert not growth.in_startup
    assert growth.gain(RATE, PATH) == 0


def test_near_the_remembered_rate_a_step_fits_a_short_queue() -> None:
    growth = stopped()
    assert empty_rounds(growth, 0.95 * RATE) == 4
    assert growth.gain(0.95 * RATE, PATH) * PATH <= 0.010 + 1e-9


def test_after_a_loss_it_is_soon_back_at_the_remembered_rate() -> None:
    growth, rate, rounds = stopped(), 0.4 * RATE, 1
    assert empty_rounds(growth, rate) == 1
    while rate < 0.85 * RATE:
        rate *= 1 + growth.gain(rate, PATH)
        growth.end_round(EMPTY, SLACK, rate)
        rounds += 1
    assert rounds <= 6
    assert rate <= 1.1 * RATE, "the last quick step ends near it"


def test_above_the_remembered_rate_the_steps_double_up_to_a_bound() -> None:
    growth = stopped()
    empty_rounds(growth, 1.3 * RATE)
    gains = []
    for _ in range(5):
        gains.append(growth.gain(1.3 * RATE, PATH))
        growth.end_round(EMPTY, SLACK, 1.3 * RATE)
    assert gains[1] == pytest.approx(2 * gains[0])
    assert gains == sorted(gains)
    assert gains[-1] * PATH == pytest.approx(0.030)


def test_on_a_short_path_a_step_is_a_quarter() -> None:
    growth = stopped()
    empty_rounds(growth, RATE)
    assert growth.gain(RATE, 0.02) == 0.25


def test_a_later_queue_corrects_the_remembered_rate_unless_it_is_a_disturbance() -> None:
    growth = stopped(0.5 * RATE)
    growth.observe_queue(STANDING, SLACK, RATE, trusted=False)
    assert empty_rounds(growth, 0.45 * RATE) == 4, "near what is remembered"
    growth = stopped(0.5 * RATE)
    growth.observe_queue(STANDING, SLACK, RATE, trusted=True)
    assert empty_rounds(growth, 0.45 * RATE) == 1, "well below it"


def test_an_rtt_probe_restarts_the_count_of_empty_round_trips() -> None:
    growth = stopped()
    for _ in range(3):
        growth.end_round(EMPTY, SLACK, RATE)
    growth.interrupt()
    assert empty_rounds(growth, RATE) == 4


def test_where_nothing_is_paced_it_ends_when_the_rate_grows_no_more_and_a_queue_stands() -> None:
    growth = BandwidthProbe()
    growth.end_round(STANDING, SLACK, 100_000)
    growth.end_round(STANDING, SLACK, 200_000)
    assert growth.active
    growth.end_round(EMPTY, SLACK, 210_000)
    assert growth.active, "nothing waits: the program does not fill it"
    growth.end_round(STANDING, SLACK, 220_000)
    assert not growth.active
