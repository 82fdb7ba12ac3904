"""Durations and moments as people type them: ``90s``, ``24h``, ``7d``, ``2027-01-31``."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")


class Duration(click.ParamType[float]):
    """Seconds, above 0."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = parse_seconds(str(value))
        if not seconds:
            self.fail(f"{str(value)[:40]!r} is no duration: write 90s, 15m, 24h or 7d", param, ctx)
        return seconds


class Moment(click.ParamType[int]):
    """A date, a time, or a duration before now; as milliseconds since 1970."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        seconds = parse_seconds(str(value))
        if seconds:
            return _ms(datetime.now(UTC) - timedelta(seconds=seconds))
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{str(value)[:40]!r} is no time: write 2h, 7d or 2027-01-31T12:00", param, ctx)
        return _ms(moment if moment.tzinfo else moment.astimezone())


def parse_seconds(text: str) -> float:
    """0 for what is no duration."""
    match = _DURATION.fullmatch(text.strip())
    return float(int(match[1]) * _UNITS[match[2]]) if match else 0.0


def _ms(moment: datetime) -> int:
    return max(0, int(moment.timestamp() * 1000))
