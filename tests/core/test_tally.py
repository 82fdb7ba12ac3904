"""Counts by key."""

from __future__ import annotations

from tunnel_core.tally import Tally


def test_a_key_at_zero_is_forgotten() -> None:
    tally: Tally[str] = Tally()
    for key in "aab":
        tally[key] += 1
    tally.take("a")
    tally.take("b")
    tally.take("c")
    assert (tally["a"], tally["b"], tally.total(), list(tally)) == (1, 0, 1, ["a"])
