"""Reset the largest stalled streams while the memory that all sessions share is short.

1. Receive memory. Granted credit cannot be taken back, so the alternative would be to slow down every reader.
   Under pressure, one stream at a time is reset: the largest whose reader took no byte for ``stall_seconds``.
2. Send memory. While the send pool is short, streams with retained bytes are reset, session by session, where
   the peer acknowledges nothing. A peer that still sends packets has ``unacked_seconds``; a silent peer,
   or a session without a carrier, has ``stall_seconds``, because most outages last seconds and end before the
   carrier is declared lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, Protocol

import trio

from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool, SendPool
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason
from tunnel_core.session.statistics import SessionStatistics


class StallWatch:
    """Track how long each stream's reader has taken no byte. No clock of its own."""

    def __init__(self, pool: CreditPool, stall_seconds: float) -> None:
        self._pool = pool
        self._stall_seconds = stall_seconds
        self._seen: dict[StreamState, tuple[int, float]] = {}  # consumed, and since when

    def find_victim(self, streams: Iterable[StreamState], now: float) -> StreamState | None:
        """Return the stream to reset now; None unless memory is short and a stream is stalled."""
        if not self._pool.under_pressure:
            self._seen.clear()
            return None
        self._seen = {
            stream: self._since(stream, now) for stream in streams if stream.recv.window > stream.recv.initial
        }
        stalled = [stream for stream, (_, since) in self._seen.items() if now - since >= self._stall_seconds]
        return max(stalled, key=lambda stream: stream.recv.buffered, default=None)

    def _since(self, stream: StreamState, now: float) -> tuple[int, float]:
        consumed = stream.recv.received - stream.recv.buffered
        known = self._seen.get(stream)
        if known is None or known[0] != consumed or not stream.recv.buffered:
            return consumed, now
        return known


async def relieve_pressure(
    pool: CreditPool, streams: Callable[[], Iterable[StreamState]], limits: Limits
) -> None:
    """Reset stalled streams while the credit pool of the process is under pressure. Runs until cancelled."""
    watch = StallWatch(pool, limits.stall_seconds)
    while True:
        await trio.sleep(limits.stall_seconds / 6)
        victim = watch.find_victim(streams(), trio.current_time())
        if victim is not None:
            detail = f"its reader read no byte for {limits.stall_seconds:g} s while memory was short"
            victim.reset(Reason.STALLED_UNDER_PRESSURE, detail)


class Retaining(Protocol):
    """The part of a session that ``UnackedWatch`` uses."""

    node: str

    @property
    def attached(self) -> bool: ...

    @property
    def mux_streams(self) -> Collection[StreamState]: ...

    def statistics(self) -> SessionStatistics: ...


class _Seen(NamedTuple):
    acked: int
    retained_bytes: int
    since: float
    is_sending: bool
    sending_since: float
    """When the peer began to send packets without acknowledging any."""


class UnackedWatch:
    """Track how long each session's peer has acknowledged nothing. No clock of its own.

    A session is stalled after ``sending_seconds`` if its peer still sends packets, and after
    ``silent_seconds`` in any case.
    """

    def __init__(self, pool: SendPool, sending_seconds: float, silent_seconds: float) -> None:
        self._pool = pool
        self._sending_seconds = sending_seconds
        self._silent_seconds = silent_seconds
        self._seen: dict[Retaining, _Seen] = {}

    def find_victims(self, sessions: Iterable[Retaining], now: float) -> list[Retaining]:
        """Return the stalled sessions with retained bytes, largest first; none unless memory is short."""
        if not self._pool.is_short:
            self._seen.clear()
            return []
        updates = ((session, self._update(session, now)) for session in sessions if session.mux_streams)
        self._seen = {session: seen for session, seen in updates if seen.retained_bytes > 0}
        stalled = [session for session, seen in self._seen.items() if self._is_stalled(seen, now)]
        return sorted(stalled, key=lambda session: self._seen[session].retained_bytes, reverse=True)

    def seconds_of(self, session: Retaining, now: float) -> float:
        """Return how long a session from ``find_victims`` has acknowledged nothing."""
        return now - self._seen[session].since

    def _update(self, session: Retaining, now: float) -> _Seen:
        figures = session.statistics()
        is_sending = session.attached and not figures.is_silent
        known = self._seen.get(session)
        if known is None or known.acked != figures.acked:
            return _Seen(figures.acked, figures.retained_bytes, now, is_sending, now)
        sending_since = now if is_sending and not known.is_sending else known.sending_since
        return known._replace(
            retained_bytes=figures.retained_bytes, is_sending=is_sending, sending_since=sending_since
        )

    def _is_stalled(self, seen: _Seen, now: float) -> bool:
        withholds_acks = seen.is_sending and now - seen.sending_since >= self._sending_seconds
        return withholds_acks or now - seen.since >= self._silent_seconds


async def relieve_send_pool(
    pool: SendPool, sessions: Callable[[], Iterable[Retaining]], limits: Limits
) -> None:
    """Free the send pool of the process while it is short. Runs until cancelled.

    Stalled sessions lose their streams with retained bytes, one session after the other, until the pool is no
    longer short. Their other streams continue.
    """
    watch = UnackedWatch(pool, limits.unacked_seconds, limits.stall_seconds)
    while True:
        await trio.sleep(limits.unacked_seconds / 5)
        now = trio.current_time()
        for session in watch.find_victims(sessions(), now):
            if not pool.is_short:
                break
            detail = (
                f"node {session.node} acknowledged nothing for {watch.seconds_of(session, now):.0f} s "
                "while the server's send memory was short"
            )
            for stream in [stream for stream in session.mux_streams if stream.send.retained_bytes]:
                stream.reset(Reason.STALLED_UNDER_PRESSURE, detail)
