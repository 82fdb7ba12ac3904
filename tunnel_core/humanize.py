"""Format times, durations and sizes as text. In all programs times are in UTC and show the zone.

Tables and sentences have ``2026-01-01 12:00:03Z`` or ``2026-01-01 12:00Z``; JSON has ISO 8601,
``2026-01-01T12:00:03Z``. No other module formats a time, so no module can leave the zone out.
"""

from __future__ import annotations

from datetime import UTC, datetime


def as_moment(moment: datetime) -> str:
    """Return a time to the second, for tables and sentences. Raises ``ValueError`` if it has no zone."""
    return _in_utc(moment).isoformat(" ", "seconds").replace("+00:00", "Z")


def as_minute(moment: datetime) -> str:
    """Return a time to the minute, for example the end of a certificate."""
    return _in_utc(moment).isoformat(" ", "minutes").replace("+00:00", "Z")


def as_iso(moment: datetime, timespec: str = "seconds") -> str:
    """Return a time as ISO 8601, for JSON. ``timespec`` is as in ``datetime.isoformat``."""
    return _in_utc(moment).isoformat(timespec=timespec).replace("+00:00", "Z")


def parse_moment(text: object) -> datetime | None:
    """Return the time of an ISO 8601 text, in UTC unless it has a zone. None if the text is no time."""
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def moment_of(text: object) -> str:
    """Return ``as_moment`` of an ISO time in JSON; empty if the text is no time."""
    found = parse_moment(text)
    return "" if found is None else as_moment(found)


def minute_of(text: object) -> str:
    """Return ``as_minute`` of an ISO time in JSON; empty if the text is no time."""
    found = parse_moment(text)
    return "" if found is None else as_minute(found)


def as_length(seconds: float) -> str:
    """Return a duration in few characters: ``9s``, ``5m``, ``3h``, ``2d4h``."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole}s"
    if whole < 2 * 3600:
        return f"{whole // 60}m"
    days, hours = divmod(whole // 3600, 24)
    return f"{hours}h" if not days else f"{days}d{hours}h"


def as_duration(seconds: float) -> str:
    """Return a duration with units: ``12 s``, ``3 min 20 s``, ``2 h 5 min``, ``4 d 1 h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def as_milliseconds(seconds: float) -> str:
    """Return a round trip given in seconds: ``0.42 ms``, ``58 ms``."""
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"


def as_size(count: int) -> str:
    """Return a number of bytes: ``0 B``, ``1.5 KiB``, ``12 MiB``."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"


def size_of(number: object) -> str:
    """Return ``as_size`` of a number in JSON; ``0 B`` if it is no number."""
    return as_size(int(number)) if isinstance(number, int | float) else as_size(0)


def length_of(seconds: object) -> str:
    """Return ``as_length`` of a number in JSON; empty if it is no number."""
    return as_length(seconds) if isinstance(seconds, int | float) else ""


def milliseconds_of(number: object) -> str:
    """Return ``as_milliseconds`` of a number of milliseconds in JSON; empty if it is no number."""
    return as_milliseconds(number / 1000) if isinstance(number, int | float) else ""


def age_of(text: object, now: datetime) -> str:
    """Return ``as_length`` of the time since an ISO time in JSON; empty if the text is no time."""
    then = parse_moment(text)
    return "" if then is None else as_length((now - then).total_seconds())


def ago(seconds: float) -> str:
    """Return the age of an event: ``5 s ago``, ``3 min ago``, ``2 h ago``, ``4 days ago``."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size or (size == 60 and seconds >= size):
            return f"{int(seconds // size)} {unit} ago"
    return f"{max(0, int(seconds))} s ago"


def counted(number: int, name: str) -> str:
    """Return ``1 session``, ``2 sessions``."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment.astimezone(UTC)
