"""Numbers as people read them."""

from __future__ import annotations

from datetime import datetime

from tunnel_core.humanize import as_length, parse_moment

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(number: object) -> str:
    """Bytes: ``512 B``, ``1.5 MiB``."""
    value = float(number) if isinstance(number, int | float) else 0.0
    unit = 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_UNITS[unit]}"


def duration(seconds: object) -> str:
    """A length of time, as ``as_length`` has it; empty if it is not known."""
    return as_length(seconds) if isinstance(seconds, int | float) else ""


def milliseconds(number: object) -> str:
    """A round trip: ``0.8 ms``, ``52 ms``; empty if it is not known."""
    if not isinstance(number, int | float):
        return ""
    return f"{number:.1f} ms" if number < 10 else f"{number:.0f} ms"


def age(moment: object, now: datetime) -> str:
    """How long ago an ISO time of the server was; empty if there is none."""
    then = parse_moment(moment)
    return "" if then is None else duration((now - then).total_seconds())
