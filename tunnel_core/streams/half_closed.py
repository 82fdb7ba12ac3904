"""The watch over a relay when one side has ended its half and the other sends nothing.

Nothing is received from the ended side any more and nothing is sent to it, so its departure shows nowhere: a
user who closed both halves of a TCP connection looks like a user who waits for the answer. Two bounds hold:

1. The kernel asks the ended side every ``LOOK_SECONDS`` (TCP keepalive), and its socket is checked as often.
   The kernel of a process that closed its socket answers with a reset, at the latest after its FIN-WAIT-2
   timeout (60 s on Linux). A unix socket shows a closed peer at once.
2. A peer that keeps the connection open is given up after a limit without a byte, which the caller sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import trio

LOOK_SECONDS = 5.0
"""Time between two checks of a side from which nothing is received."""


@runtime_checkable
class Watchable(Protocol):
    """A stream whose peer can be checked without receiving or sending."""

    def check_peer(self) -> None:
        """Raise ``trio.BrokenResourceError`` if the peer can receive nothing any more."""

    def ask_peer_every(self, seconds: float) -> None:
        """Have the peer asked whether it is still there, so that ``check_peer`` finds out."""


class Silence:
    """How long ``progress`` has returned the same value. ``limit_seconds`` None: never too long."""

    def __init__(self, progress: Callable[[], object], limit_seconds: float | None) -> None:
        self.look_seconds = LOOK_SECONDS if limit_seconds is None else min(LOOK_SECONDS, limit_seconds)
        self._progress = progress
        self._limit = limit_seconds
        self._seconds = 0.0
        self._last = progress()

    def is_too_long(self) -> bool:
        """Compare with the call before, which was ``look_seconds`` ago."""
        now = self._progress()
        self._seconds = self._seconds + self.look_seconds if now == self._last else 0.0
        self._last = now
        return self._limit is not None and self._seconds >= self._limit


async def wait_silent(ended: trio.abc.Stream, silence: Silence) -> None:
    """Return when the silence is too long. Raise ``trio.BrokenResourceError`` when ``ended`` is gone."""
    if isinstance(ended, Watchable):
        ended.ask_peer_every(LOOK_SECONDS)
    while True:
        await trio.sleep(silence.look_seconds)
        if isinstance(ended, Watchable):
            ended.check_peer()
        if silence.is_too_long():
            return


def is_gone(stream: trio.abc.Stream) -> bool:
    """Whether the peer of ``stream`` can receive nothing any more, as far as that is known."""
    try:
        if isinstance(stream, Watchable):
            stream.check_peer()
    except trio.BrokenResourceError:
        return True
    return False
