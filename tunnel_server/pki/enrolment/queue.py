"""Who asks for a certificate waits here for a turn; whom there is no room for is told when to come back.

A fleet that was told no more than "later" would come as one again and again, and each handshake costs more
than a certificate. So everybody who is sent away gets a moment of his own, the next one that is free.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator

import trio

SOONEST_SECONDS, LATEST_SECONDS = 1.0, 60.0
"""Shortest and longest time after which a refused requester is told to return. Each gets another moment."""


class QueueFull(Exception):  # noqa: N818 - an answer, no fault
    """There is no room. ``seconds``: when to come back."""

    def __init__(self, present: int, seconds: float) -> None:
        super().__init__(f"{present} requests for certificates are here at this moment")
        self.seconds = seconds


class EnrolmentQueue:
    """One at a time, in the order in which they came, ``pace_seconds`` or more after the one before.

    ``return_seconds`` lie between the moments of two who were sent away. Times are trio's.
    """

    def __init__(self, *, pace_seconds: float, return_seconds: float) -> None:
        self.present = 0
        """Those who have their turn, or wait for it."""
        self._pace = pace_seconds
        self._return = return_seconds
        self._head = trio.Lock()
        self._next_turn = self._next_return = 0.0

    @contextlib.asynccontextmanager
    async def turn(self, most: int) -> AsyncIterator[None]:
        """Waits for a turn and holds it; who is cancelled leaves. Raises ``QueueFull`` beyond ``most``."""
        if self.present >= most:
            raise QueueFull(self.present, self._seconds_to_return())
        self.present += 1
        try:
            async with self._head:
                await trio.sleep_until(self._next_turn)
                self._next_turn = trio.current_time() + self._pace
                yield
        finally:
            self.present -= 1

    def _seconds_to_return(self) -> float:
        now = trio.current_time()
        latest = now + LATEST_SECONDS
        self._next_return = min(latest, max(now + SOONEST_SECONDS, self._next_return) + self._return)
        if self._next_return < latest:
            return self._next_return - now
        return random.uniform(LATEST_SECONDS / 2, LATEST_SECONDS)  # noqa: S311 - spreads load
