"""Wait until the peer of a stream received what was sent, before a reset discards the rest."""

from __future__ import annotations

import trio

from tunnel_core.streams.nowait import NowaitStream

_RESET_DELAY_SECONDS, _RESET_STALL_SECONDS = 5.0, 1.0
"""How long a reset waits for data that the target sent before it: in total, and without progress."""
_POLL_SECONDS = 0.02


async def wait_delivered(stream: NowaitStream) -> None:
    """Wait, within bounds, until the peer acknowledged all bytes."""
    latest = trio.current_time() + _RESET_DELAY_SECONDS
    left, deadline = stream.undelivered, trio.current_time() + _RESET_STALL_SECONDS
    while left and trio.current_time() < min(latest, deadline):
        await trio.sleep(_POLL_SECONDS)  # there is no event for an acknowledgement
        if stream.undelivered < left:
            deadline = trio.current_time() + _RESET_STALL_SECONDS
        left = stream.undelivered
