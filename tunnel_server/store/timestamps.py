"""Times in the store: whole milliseconds since 1970 in UTC. No I/O and no clock."""

from __future__ import annotations

from datetime import UTC, datetime

from tunnel_core.humanize import as_iso

DAY = 24 * 3600 * 1000


def to_ms(moment: datetime) -> int:
    """Return an aware time in milliseconds."""
    return int(moment.timestamp() * 1000)


def from_ms(at: int) -> datetime:
    """Return the time ``at`` (milliseconds) in UTC."""
    return datetime.fromtimestamp(at / 1000, UTC)


def iso_of(at: int) -> str:
    """Return the time ``at`` (milliseconds) as ISO 8601 in UTC, with milliseconds."""
    return as_iso(from_ms(at), "milliseconds")
