"""Times as people and scripts read them: in UTC with the zone written, in all commands of all programs.

Tables and sentences have ``2026-01-01 12:00:03Z`` or ``2026-01-01 12:00Z``; JSON has ISO 8601,
``2026-01-01T12:00:03Z``. No other module formats a time, so none can leave the zone out.
"""

from __future__ import annotations

from datetime import UTC, datetime


def as_moment(moment: datetime) -> str:
    """Return a time to the second, for tables and sentences. Raises ``ValueError`` for one without a zone."""
    return _in_utc(moment).isoformat(" ", "seconds").replace("+00:00", "Z")


def as_minute(moment: datetime) -> str:
    """Return a time to the minute, for ends of certificates and the like."""
    return _in_utc(moment).isoformat(" ", "minutes").replace("+00:00", "Z")


def as_iso(moment: datetime, timespec: str = "seconds") -> str:
    """Return a time as ISO 8601, for JSON. ``timespec`` is as in ``datetime.isoformat``."""
    return _in_utc(moment).isoformat(timespec=timespec).replace("+00:00", "Z")


def parse_moment(text: object) -> datetime | None:
    """Return the time that a program wrote as ISO 8601; without a zone it is UTC. None if it is no time."""
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def moment_of(text: object) -> str:
    """Return ``as_moment`` of an ISO time in JSON; empty if it is none."""
    found = parse_moment(text)
    return "" if found is None else as_moment(found)


def minute_of(text: object) -> str:
    """Return ``as_minute`` of an ISO time in JSON; empty if it is none."""
    found = parse_moment(text)
    return "" if found is None else as_minute(found)


def as_length(seconds: float) -> str:
    """Return a length of time in few characters: ``9s``, ``5m``, ``3h``, ``2d4h``."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole}s"
    if whole < 2 * 3600:
        return f"{whole // 60}m"
    days, hours = divmod(whole // 3600, 24)
    return f"{hours}h" if not days else f"{days}d{hours}h"


def counted(number: int, name: str) -> str:
    """Return ``1 session``, ``2 sessions``."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment.astimezone(UTC)
