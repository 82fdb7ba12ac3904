"""Watch a relay when one side has ended its half and the other side sends nothing.

The relay receives nothing more from the ended side and sends nothing to it, so it cannot see that side leave.
A user that closed both halves of a TCP connection looks like a user that waits for the answer. Two bounds
hold:

1. The kernel probes the ended side every ``CHECK_SECONDS`` (TCP keepalive), and its socket is checked as
   often. The kernel of a process that closed its socket answers with a reset, at the latest after its
   FIN-WAIT-2 timeout (60 s on Linux). A unix socket shows a closed peer at once.
2. If the peer keeps the connection open, the relay ends after a limit without a byte, which the caller sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import trio

CHECK_SECONDS = 5.0
"""Time between two checks of a side from which nothing is received."""


@runtime_checkable
class Watchable(Protocol):
    """A stream whose peer can be checked without receiving or sending."""

    def check_peer(self) -> None:
        """Raise ``trio.BrokenResourceError`` if the peer cannot receive any more."""

    def probe_peer_every(self, seconds: float) -> None:
        """Probe the peer after each ``seconds`` without traffic, so that ``check_peer`` sees it leave."""


class Silence:
    """The time for which ``progress`` has returned the same value. ``limit_seconds`` None: no limit."""

    def __init__(self, progress: Callable[[], object], limit_seconds: float | None) -> None:
        self.check_seconds = CHECK_SECONDS if limit_seconds is None else min(CHECK_SECONDS, limit_seconds)
        self._progress = progress
        self._limit = limit_seconds
        self._seconds = 0.0
        self._last = progress()

    def is_too_long(self) -> bool:
        """Whether nothing has moved for the limit. Call this every ``check_seconds``."""
        now = self._progress()
        self._seconds = self._seconds + self.check_seconds if now == self._last else 0.0
        self._last = now
        return self._limit is not None and self._seconds >= self._limit


async def wait_silent(ended: trio.abc.Stream, silence: Silence) -> None:
    """Return when the silence is too long.

    Raise ``trio.BrokenResourceError`` when the peer of ``ended`` is gone.
    """
    if isinstance(ended, Watchable):
        ended.probe_peer_every(CHECK_SECONDS)
    while True:
        await trio.sleep(silence.check_seconds)
        if isinstance(ended, Watchable):
            ended.check_peer()
        if silence.is_too_long():
            return


def is_peer_gone(stream: trio.abc.Stream) -> bool:
    """Whether the peer of ``stream`` is known to receive nothing any more."""
    try:
        if isinstance(stream, Watchable):
            stream.check_peer()
    except trio.BrokenResourceError:
        return True
    return False
