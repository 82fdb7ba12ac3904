"""Figures of one session at one moment, for metrics, the API, status pages and the choice of a carrier."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tunnel_core.flight import Flight


@dataclass(frozen=True, slots=True)
class FlightStatistics:
    """What is known of the path to the peer, and how much may be under way on it.

    The rate and the round trip are known once bulk has moved.
    """

    in_flight: int = 0
    """Bytes sent and not acknowledged yet."""
    limit: int = 0
    """Bytes that may be in flight."""
    rate_bytes_per_second: float = 0.0
    min_round_trip_seconds: float = 0.0
    competing: bool = False
    """Whether another flow fills the queue of the path."""


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """One snapshot. Times are in the session's clock, durations in seconds."""

    round_trip_seconds: float | None = None
    """Of the newest ping; None until the first was answered."""
    lost_seconds: float | None = None
    """For how long there has been no carrier; None while there is one."""
    is_quiet: bool = False
    """Whether something is late and nothing was received meanwhile."""
    heard_at: float = -math.inf
    """When the carrier last brought anything; minus infinity without a carrier."""
    late_since: float = math.inf
    """When the oldest of what is late was sent; infinity if nothing is."""
    patience_seconds: float = 0.0
    """How long an answer of this peer may take before it is late."""
    open_streams: int = 0
    """Streams that their owners have not closed yet."""
    bytes_in: int = 0
    bytes_out: int = 0
    credit_granted: int = 0
    """Bytes that the peer may send, or has sent and nobody read yet, over all streams."""
    retained_bytes: int = 0
    """Bytes that were sent and are kept until the peer confirms them."""
    flight: FlightStatistics = FlightStatistics()


def flight_statistics(flight: Flight) -> FlightStatistics:
    """Return the figures of ``flight`` now."""
    return FlightStatistics(
        flight.in_flight,
        flight.limit,
        flight.rate_bytes_per_second,
        flight.min_round_trip_seconds,
        flight.competing,
    )
