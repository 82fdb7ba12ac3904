"""What happens when few hold most of the memory that all sessions share: the largest is reset.

Granted credit cannot be taken back, so the other choice would be to squeeze everybody who still reads.
Only under pressure, only a stream whose reader took nothing for ``stall_seconds``, one at a time. The send
pool is alike: while it is short, sessions whose peers confirm nothing lose the streams that fill it: after
``unconfirmed_seconds`` if the peer sends something, and after ``stall_seconds`` if it is silent or has no
carrier. Outages of seconds are ordinary, and most of them end before a carrier is called lost.
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
    """Remembers since when each stream's reader has taken nothing. No clock of its own."""

    def __init__(self, pool: CreditPool, stall_seconds: float) -> None:
        self._pool = pool
        self._stall_seconds = stall_seconds
        self._seen: dict[StreamState, tuple[int, float]] = {}  # consumed, and since when

    def find_victim(self, streams: Iterable[StreamState], now: float) -> StreamState | None:
        """The stream to reset now, if memory is short and one stands still."""
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
    """Looks after the pool of a process until cancelled."""
    watch = StallWatch(pool, limits.stall_seconds)
    while True:
        await trio.sleep(limits.stall_seconds / 6)
        victim = watch.find_victim(streams(), trio.current_time())
        if victim is not None:
            detail = f"its reader took nothing for {limits.stall_seconds:g} s while memory was short"
            victim.reset(Reason.STALLED_UNDER_PRESSURE, detail)


class Retaining(Protocol):
    """What the watch asks of a session."""

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
    is_heard: bool
    refused_since: float
    """When the peer was first both heard and confirming nothing."""


class UnconfirmedWatch:
    """Remembers since when each session's peer has confirmed nothing. No clock of its own.

    ``heard_seconds`` are for peers that send something meanwhile, ``silent_seconds`` for all.
    """

    def __init__(self, pool: SendPool, heard_seconds: float, silent_seconds: float) -> None:
        self._pool = pool
        self._heard_seconds = heard_seconds
        self._silent_seconds = silent_seconds
        self._seen: dict[Retaining, _Seen] = {}

    def find_victims(self, sessions: Iterable[Retaining], now: float) -> list[Retaining]:
        """Return the sessions that have to give way, largest first, if memory is short."""
        if not self._pool.is_short:
            self._seen.clear()
            return []
        looks = ((session, self._look(session, now)) for session in sessions if session.mux_streams)
        self._seen = {session: seen for session, seen in looks if seen.retained_bytes > 0}
        stalled = [session for session, seen in self._seen.items() if self._is_stalled(seen, now)]
        return sorted(stalled, key=lambda session: self._seen[session].retained_bytes, reverse=True)

    def seconds_of(self, session: Retaining, now: float) -> float:
        """For how long a session that was found has confirmed nothing."""
        return now - self._seen[session].since

    def _look(self, session: Retaining, now: float) -> _Seen:
        figures = session.statistics()
        is_heard = session.attached and not figures.is_silent
        known = self._seen.get(session)
        if known is None or known.acked != figures.acked:
            return _Seen(figures.acked, figures.retained_bytes, now, is_heard, now)
        refused_since = now if is_heard and not known.is_heard else known.refused_since
        return known._replace(
            retained_bytes=figures.retained_bytes, is_heard=is_heard, refused_since=refused_since
        )

    def _is_stalled(self, seen: _Seen, now: float) -> bool:
        refuses = seen.is_heard and now - seen.refused_since >= self._heard_seconds
        return refuses or now - seen.since >= self._silent_seconds


async def relieve_send_pool(
    pool: SendPool, sessions: Callable[[], Iterable[Retaining]], limits: Limits
) -> None:
    """Frees the send pool of a process while it is short, until cancelled.

    Sessions give way one after the other, until the pool is short no more. Streams that keep nothing go on.
    """
    watch = UnconfirmedWatch(pool, limits.unconfirmed_seconds, limits.stall_seconds)
    while True:
        await trio.sleep(limits.unconfirmed_seconds / 5)
        now = trio.current_time()
        for session in watch.find_victims(sessions(), now):
            if not pool.is_short:
                break
            detail = (
                f"node {session.node} confirmed nothing for {watch.seconds_of(session, now):.0f} s "
                "while the server's send memory was short"
            )
            for stream in [stream for stream in session.mux_streams if stream.send.retained_bytes]:
                stream.reset(Reason.STALLED_UNDER_PRESSURE, detail)
