"""The token bucket: never more than its rate and one burst, whatever the window."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tunnel_core.congestion.token_bucket import TokenBucket


def test_it_is_full_at_first_wherever_the_clock_began() -> None:
    for start in (-5.0, 0.0, 1e6):
        assert TokenBucket(1000, 500).room(start) == 500


def test_a_rest_fills_it_up_to_the_burst() -> None:
    bucket = TokenBucket(8192, 4096)
    bucket.take(4096, 0.0)
    assert bucket.room(0.0) == 0
    assert bucket.room(0.125) == 1024
    assert bucket.room(60.0) == 4096


def test_a_debt_is_paid_before_there_is_room() -> None:
    bucket = TokenBucket(8192, 4096)
    bucket.take(5120, 0.0)
    assert bucket.room(0.125) == 0
    assert bucket.room(0.25) == 1024


def test_few_bytes_are_no_room_and_the_deadline_is_when_a_piece_fits() -> None:
    bucket = TokenBucket(8192, 4096)
    assert bucket.deadline(0.0) == 0.0
    bucket.take(4096, 0.0)
    assert bucket.deadline(0.0) == 0.0625
    assert bucket.room(0.03125) == 0
    assert bucket.room(0.0625) == 512


def test_a_piece_is_no_more_than_the_burst() -> None:
    assert TokenBucket(1000, 100).room(0.0) == 100


def test_the_burst_follows_from_the_rate() -> None:
    assert TokenBucket(1_000_000).burst == 100_000
    assert TokenBucket(1000).burst == 4096


def test_what_waited_is_counted_once() -> None:
    bucket = TokenBucket(1000, 500)
    bucket.take(500, 0.0)
    bucket.note_blocked(0.0)
    bucket.note_blocked(0.1)
    bucket.take(200, 0.25)
    bucket.take(50, 0.3)
    assert (bucket.delayed_seconds, bucket.delayed_bytes) == (0.25, 200)


rates = st.integers(100, 10**9)
steps = st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1)), max_size=40)


@given(rates, st.integers(1, 10**7), st.floats(0, 1e6), steps)
def test_no_window_sees_more_than_rate_and_burst(
    rate: int, burst: int, start: float, steps: list[tuple[float, float]]
) -> None:
    bucket, now, taken = TokenBucket(rate, burst), start, []
    for pause, share in steps:
        now += pause
        count = int(bucket.room(now) * share)
        bucket.take(count, now)
        taken.append((now, count))
    for first, last in itertools.combinations_with_replacement(range(len(taken)), 2):
        seconds = taken[last][0] - taken[first][0]
        rounding = 1 + rate * 1e-9  # of times around a million seconds
        assert sum(count for _, count in taken[first : last + 1]) <= rate * seconds + burst + rounding


@given(rates, steps)
def test_whoever_waits_for_the_deadline_finds_room(rate: int, steps: list[tuple[float, float]]) -> None:
    bucket, now = TokenBucket(rate), 0.0
    for pause, share in steps:
        now += pause
        bucket.take(int(bucket.burst * share * 2), now)
        now = max(now, bucket.deadline(now))
        assert bucket.room(now) > 0


@given(rates, st.floats(1, 100))
def test_a_busy_sender_gets_all_of_the_rate(rate: int, seconds: float) -> None:
    bucket, now, total = TokenBucket(rate), 0.0, 0
    while now < seconds and total < rate * 5:
        count = bucket.room(now)
        bucket.take(count, now)
        total += count
        now = bucket.deadline(now)
    assert total >= min(rate * seconds, rate * 5) * 0.97 - 512
