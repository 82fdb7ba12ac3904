"""What happens when stalled readers hold most of the credit pool: the largest of them is reset.

Granted credit cannot be taken back, so the other choice would be to squeeze everybody who still reads.
Only under pressure, only a stream whose reader took nothing for ``stall_seconds``, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from tunnel_core.credit import CreditPool
from tunnel_core.limits import Limits
from tunnel_core.mux_stream import MuxStream
from tunnel_core.reasons import Reason


class StallWatch:
    """Remembers since when each stream's reader has taken nothing. No clock of its own."""

    def __init__(self, pool: CreditPool, stall_seconds: float) -> None:
        self._pool = pool
        self._stall_seconds = stall_seconds
        self._seen: dict[MuxStream, tuple[int, float]] = {}  # consumed, and since when

    def find_victim(self, streams: Iterable[MuxStream], now: float) -> MuxStream | None:
        """The stream to reset now, if memory is short and one stands still."""
        if not self._pool.under_pressure:
            self._seen.clear()
            return None
        self._seen = {
            stream: self._since(stream, now) for stream in streams if stream.recv.window > stream.recv.initial
        }
        stalled = [stream for stream, (_, since) in self._seen.items() if now - since >= self._stall_seconds]
        return max(stalled, key=lambda stream: stream.recv.buffered, default=None)

    def _since(self, stream: MuxStream, now: float) -> tuple[int, float]:
        consumed = stream.recv.received - stream.recv.buffered
        known = self._seen.get(stream)
        if known is None or known[0] != consumed or not stream.recv.buffered:
            return consumed, now
        return known


async def relieve_pressure(
    pool: CreditPool, streams: Callable[[], Iterable[MuxStream]], limits: Limits
) -> None:
    """Looks after the pool of a process until cancelled."""
    watch = StallWatch(pool, limits.stall_seconds)
    while True:
        await trio.sleep(limits.stall_seconds / 6)
        victim = watch.find_victim(streams(), trio.current_time())
        if victim is not None:
            detail = f"its reader took nothing for {limits.stall_seconds:g} s while memory was short"
            victim.reset(Reason.STALLED_UNDER_PRESSURE, detail)
