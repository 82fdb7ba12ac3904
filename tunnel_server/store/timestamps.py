"""Times as the store keeps them: whole milliseconds since 1970. No I/O and no clock."""

from __future__ import annotations

from datetime import UTC, datetime

from tunnel_core.humanize import as_iso

DAY = 24 * 3600 * 1000


def to_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def from_ms(at: int) -> datetime:
    return datetime.fromtimestamp(at / 1000, UTC)


def iso_of(at: int) -> str:
    """ISO 8601 in UTC, with milliseconds."""
    return as_iso(from_ms(at), "milliseconds")
