"""Numbers in readable form."""

from __future__ import annotations

from datetime import datetime

from tunnel_core.humanize import as_length, parse_moment

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(number: object) -> str:
    """Return a number of bytes as ``512 B`` or ``1.5 MiB``."""
    value = float(number) if isinstance(number, int | float) else 0.0
    unit = 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_UNITS[unit]}"


def duration(seconds: object) -> str:
    """Return seconds as ``as_length`` does, or an empty text for an unknown value."""
    return as_length(seconds) if isinstance(seconds, int | float) else ""


def milliseconds(number: object) -> str:
    """Return a round trip as ``0.8 ms`` or ``52 ms``, or an empty text for an unknown value."""
    if not isinstance(number, int | float):
        return ""
    return f"{number:.1f} ms" if number < 10 else f"{number:.0f} ms"


def age(moment: object, now: datetime) -> str:
    """Return the time since an ISO time of the server, or an empty text without one."""
    then = parse_moment(moment)
    return "" if then is None else duration((now - then).total_seconds())
