"""Figures of one session at one moment, for metrics, the API, status pages and the choice of a carrier."""

from __future__ import annotations

import math
from dataclasses import dataclass

import trio

from tunnel_core.congestion.controller import CongestionController
from tunnel_core.session.open_streams import OpenStreams
from tunnel_core.session.protocol import SessionProtocol
from tunnel_core.session.state import Loss


@dataclass(frozen=True, slots=True)
class FlightStatistics:
    """Estimates of the path to the peer, and the congestion window.

    The rate and the round trip are 0 until the peer acknowledged a packet on this carrier.
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
    """Round trip of the newest ping; None until the first pong."""
    lost_seconds: float | None = None
    """Time without a carrier; None while there is a carrier."""
    is_silent: bool = False
    """Whether an answer is late and no other packet arrived meanwhile."""
    last_received_at: float = -math.inf
    """When the newest packet arrived over the carrier; minus infinity without a carrier."""
    late_since: float = math.inf
    """When the oldest late packet or ping was sent; infinity if none is late."""
    response_timeout_seconds: float = 0.0
    """Time after which an answer of this peer is late."""
    open_streams: int = 0
    """Streams that their owners have not closed yet."""
    bytes_in: int = 0
    bytes_out: int = 0
    credit_granted: int = 0
    """Bytes that the peer may send, or has sent and the streams' owners have not read, over all streams."""
    acked: int = 0
    """Number of the newest packet that the peer acknowledged."""
    retained_bytes: int = 0
    """Bytes sent and kept for retransmission until the peer acknowledges them."""
    flight: FlightStatistics = FlightStatistics()


def take_statistics(
    protocol: SessionProtocol, streams: OpenStreams, lost: Loss | None, *, is_carried: bool
) -> SessionStatistics:
    """Return the figures of a session now; ``is_carried``: it has a carrier."""
    liveness, mux, now = protocol.liveness, protocol.mux, trio.current_time()
    return SessionStatistics(
        round_trip_seconds=liveness.round_trip_seconds,
        lost_seconds=None if lost is None else now - lost.at,
        is_silent=is_carried and now >= protocol.silent_at(),
        last_received_at=liveness.last_received_at if is_carried else -math.inf,
        late_since=protocol.late_since(now) if is_carried else math.inf,
        response_timeout_seconds=liveness.response_timeout_seconds,
        open_streams=len(streams.all),
        bytes_in=streams.bytes_in,
        bytes_out=streams.bytes_out,
        credit_granted=sum(stream.recv.outstanding for stream in mux.streams.values()),
        acked=protocol.acked,
        retained_bytes=mux.retained_bytes,
        flight=flight_statistics(protocol.congestion),
    )


def flight_statistics(congestion: CongestionController) -> FlightStatistics:
    """Return the figures of ``congestion`` now."""
    return FlightStatistics(
        congestion.in_flight,
        congestion.limit,
        congestion.rate_bytes_per_second,
        congestion.min_round_trip_seconds,
        congestion.competing,
    )
