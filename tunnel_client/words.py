"""Numbers as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(number: object) -> str:
    """Bytes: ``512 B``, ``1.5 MiB``."""
    value = float(number) if isinstance(number, int | float) else 0.0
    unit = 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_UNITS[unit]}"


def duration(seconds: object) -> str:
    """A length of time in its largest unit, and hours with days: ``9s``, ``5m``, ``3h``, ``2d4h``."""
    if not isinstance(seconds, int | float):
        return ""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole}s"
    if whole < 2 * 3600:
        return f"{whole // 60}m"
    days, hours = divmod(whole // 3600, 24)
    return f"{hours}h" if not days else f"{days}d{hours}h"


def milliseconds(number: object) -> str:
    """A round trip: ``0.8 ms``, ``52 ms``; empty if it is not known."""
    if not isinstance(number, int | float):
        return ""
    return f"{number:.1f} ms" if number < 10 else f"{number:.0f} ms"


def moment(text: object) -> str:
    """An ISO time of the server to the second, in UTC: ``2026-01-01 12:00:03Z``."""
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError):
        return ""


def age(moment: object, now: datetime) -> str:
    """How long ago an ISO time of the server was; empty if there is none."""
    try:
        then = datetime.fromisoformat(str(moment))
    except ValueError:
        return ""
    return duration((now - then.astimezone(UTC)).total_seconds())
