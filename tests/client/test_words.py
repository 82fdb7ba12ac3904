"""Sizes, counts and durations as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tunnel_client import words

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (150_000, "146 KiB"),
        (1024**2, "1.0 MiB"),
        (5 * 1024**5, "5120 TiB"),
        (None, "0 B"),
    ],
)
def test_sizes(number: object, text: str) -> None:
    assert words.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0.9, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (187_200, "2d4h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0.84, "0.8 ms"), (52.3, "52 ms"), (None, "")])
def test_round_trips(number: object, text: str) -> None:
    assert words.milliseconds(number) == text


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        ("2026-01-01T11:57:00Z", "3m"),
        ("2026-01-01T13:00:00+01:00", "0s"),
        ("2026-01-01T12:00:09Z", "0s"),
        (None, ""),
        ("soon", ""),
    ],
)
def test_ages(moment: object, text: str) -> None:
    assert words.age(moment, NOW) == text
