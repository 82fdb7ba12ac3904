from __future__ import annotations

from tunnel_core.telemetry.line_limiter import LineLimiter


def test_the_limiter_lets_one_line_a_second_pass_for_each_key() -> None:
    limiter = LineLimiter()
    assert limiter.note("a", 10.0) == 0
    assert limiter.note("a", 10.5) is None
    assert limiter.note("b", 10.5) == 0
    assert limiter.note("a", 10.9) is None
    assert limiter.note("a", 11.0) == 2
    assert limiter.note("a", 20.0) == 0


def test_a_burst_passes_and_comes_back_one_by_one() -> None:
    limiter = LineLimiter(5, burst=2)
    assert [limiter.note("a", 0.0) for _ in range(4)] == [0, 0, None, None]
    assert limiter.note("b", 0.0) == 0
    assert limiter.note("a", 4.9) is None
    assert (limiter.note("a", 5.0), limiter.note("a", 5.0)) == (3, None)
    assert [limiter.note("a", 100.0) for _ in range(3)] == [1, 0, None]


def test_beyond_the_bound_the_oldest_key_that_may_write_again_is_forgotten() -> None:
    limiter = LineLimiter(most=2)
    assert [limiter.note(key, now) for key, now in (("a", 10.0), ("b", 10.5), ("c", 11.0))] == [0, 0, 0]
    assert [limiter.note(key, 11.1) for key in ("b", "c")] == [None, None]


def test_a_flood_of_keys_writes_no_more_than_the_bound_and_one_line() -> None:
    limiter = LineLimiter(most=10)
    lines = [limiter.note(number, 10 + number / 10_000) for number in range(5000)]
    assert lines.count(0) == 11
    assert lines.count(None) == 4989
    assert limiter.note(5000, 11.5) == 0  # the others have gone
    after = [limiter.note(number, 12.0) for number in range(5000, 10_000)]
    assert sum(left_out is not None for left_out in after) <= 11


def test_lines_of_one_key_become_rarer_while_they_are_left_out() -> None:
    limiter = LineLimiter(longest_seconds=8)
    written = [tenth / 10 for tenth in range(400) if limiter.note("a", tenth / 10) is not None]
    assert written == [0, 1, 3, 7, 15, 23, 31, 39]
    assert limiter.note("a", 100) is not None
    assert limiter.note("a", 101) == 0, "after a rest they begin anew"
