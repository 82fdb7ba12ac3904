"""Durations and times as users type them: ``90s``, ``24h``, ``7d``, ``2027-01-31``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
TIME_HELP = "2h, 7d; 2027-01-31 or 2027-01-31T18:30 in this machine's zone; 2027-01-31T18:30Z in UTC"
"""Forms of a time, for the help of options."""
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")


def duration(text: str) -> float:
    """Parse a duration above 0 into seconds. Type of an option."""
    seconds = parse_seconds(text)
    if not seconds:
        raise click.BadParameter(f"{text[:40]!r} is not a duration: write 90s, 15m, 24h or 7d")
    return seconds


def moment(text: str) -> int:
    """Parse a date, a time or a duration before now into milliseconds since 1970. Type of an option.

    A time without a zone is in this machine's zone.
    """
    seconds = parse_seconds(text)
    if seconds:
        return _ms(datetime.now(UTC) - timedelta(seconds=seconds))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text[:40]!r} is not a time: write 2h, 7d or 2027-01-31T12:00") from None
    try:
        return _ms(found if found.tzinfo else found.astimezone())
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(f"{text[:40]!r} is out of the range of years") from None


def parse_seconds(text: str) -> float:
    """Return the seconds of a duration, or 0 if ``text`` is not a duration."""
    match = _DURATION.fullmatch(text.strip())
    return float(int(match[1]) * _UNITS[match[2]]) if match else 0.0


def _ms(moment: datetime) -> int:
    return max(0, int(moment.timestamp() * 1000))
