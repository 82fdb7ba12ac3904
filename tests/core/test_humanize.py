"""Times as people and scripts read them. No other module formats a time."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest

from tests.test_fences import modules
from tunnel_core.humanize import (
    age_of,
    ago,
    as_duration,
    as_iso,
    as_length,
    as_milliseconds,
    as_minute,
    as_moment,
    as_size,
    length_of,
    milliseconds_of,
    minute_of,
    moment_of,
    parse_moment,
    size_of,
)

NOON = datetime(2026, 1, 1, 12, 0, 3, 123_000, tzinfo=UTC)
IN_PARIS = NOON.astimezone(timezone(timedelta(hours=1)))


@pytest.mark.parametrize("moment", [NOON, IN_PARIS])
def test_every_form_is_in_utc_and_names_utc(moment: datetime) -> None:
    assert as_moment(moment) == "2026-01-01 12:00:03Z"
    assert as_minute(moment) == "2026-01-01 12:00Z"
    assert as_iso(moment) == "2026-01-01T12:00:03Z"
    assert as_iso(moment, "milliseconds") == "2026-01-01T12:00:03.123Z"


@pytest.mark.parametrize("form", [as_moment, as_minute, as_iso])
def test_a_time_without_a_zone_is_a_fault(form: object) -> None:
    with pytest.raises(ValueError, match="without a zone"):
        form(datetime(2026, 1, 1))  # type: ignore[operator]  # noqa: DTZ001 - the fault


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        ("2026-01-01T11:57:00.123Z", "2026-01-01 11:57:00Z"),
        ("2026-01-01T13:00:00+01:00", "2026-01-01 12:00:00Z"),
        ("2026-01-01T12:00:00", "2026-01-01 12:00:00Z"),
        ("0001-01-01T00:00:00+10:00", ""),
        (None, ""),
        (5, ""),
        ("soon", ""),
    ],
)
def test_times_of_json(moment: object, text: str) -> None:
    assert moment_of(moment) == text
    assert minute_of(moment) == (text and f"{text[:16]}Z")
    assert (parse_moment(moment) is None) == (text == "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0.9, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (187_200, "2d4h")],
)
def test_lengths(seconds: float, text: str) -> None:
    assert as_length(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s ago"), (59, "59 s ago"), (60, "1 min ago"), (7_000, "116 min ago"), (7_300, "2 h ago"),
     (200_000, "2 days ago")],
)  # fmt: skip
def test_ages(seconds: float, text: str) -> None:
    assert ago(seconds) == text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (as_size(0), "0 B"),
        (as_size(1023), "1023 B"),
        (as_size(1536), "1.5 KiB"),
        (as_size(12 * 1024**2), "12 MiB"),
        (as_size(5 * 1024**5), "5120 TiB"),
        (as_duration(0.9), "0 s"),
        (as_duration(3599), "59 min 59 s"),
        (as_duration(7500), "2 h 5 min"),
        (as_duration(90000), "1 d 1 h"),
        (as_milliseconds(0.00042), "0.42 ms"),
        (as_milliseconds(0.0581), "58 ms"),
    ],
)
def test_figures_for_people(shown: str, expected: str) -> None:
    assert shown == expected


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (size_of(150_000), "146 KiB"),
        (size_of(None), "0 B"),
        (length_of(187_200), "2d4h"),
        (length_of(None), ""),
        (milliseconds_of(0.84), "0.84 ms"),
        (milliseconds_of(52.3), "52 ms"),
        (milliseconds_of(None), ""),
        (age_of("2026-01-01T11:57:00Z", NOON), "3m"),
        (age_of("2026-01-01T13:00:00+01:00", NOON), "3s"),
        (age_of("2026-01-01T12:00:09Z", NOON), "0s"),
        (age_of(None, NOON), ""),
        (age_of("soon", NOON), ""),
    ],
)
def test_values_of_json(shown: str, expected: str) -> None:
    assert shown == expected


OTHER_FORMATS = {
    "tunnel_core.humanize": "the one formatter",
    "tunnel_core.telemetry.logs": "log lines, which say Z by themselves and are made in batches",
    "tunnel_server.entrances.est": "on the wire to agents of every version",
    "certs.authority_folder": "a file that programs of every version read",
    "tunnel_server.backup.restoring": "part of a folder's name",
}
A_FORMAT = re.compile(r"\bisoformat\(|strftime\(|%[YHM]|(?:ends|issued|expires|at|since|begins)[\"']\]\[:")
"""Also a slice of an ISO time that came as text."""


@pytest.mark.parametrize("module", sorted(modules().keys() - OTHER_FORMATS.keys()))
def test_no_other_module_formats_a_time(module: str) -> None:
    for line in modules()[module].read_text().splitlines():
        assert not A_FORMAT.search(line), f"{module} formats a time by itself: {line}"
