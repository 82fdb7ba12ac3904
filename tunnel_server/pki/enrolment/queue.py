"""Queue certificate requests. When the queue is full, raise ``QueueFull`` with the time to retry.

If all agents of a fleet got the same time, they would retry together again and again, and each handshake
costs more than a certificate. Each refused request therefore gets a separate time, the next free one.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator

import trio

SOONEST_SECONDS, LATEST_SECONDS = 1.0, 60.0
"""Shortest and longest time to retry that a refusal gives. Each refused request gets a separate time."""


class QueueFull(Exception):  # noqa: N818 - an answer, no fault
    """The queue is full. The requester may retry in ``seconds``."""

    def __init__(self, present: int, seconds: float) -> None:
        super().__init__(f"{present} requests for certificates wait at this moment")
        self.seconds = seconds


class EnrolmentQueue:
    """Queue that admits one request at a time, in order of arrival, at least ``pace_seconds`` apart.

    ``return_seconds`` separate the retry times of two refused requests. Times are those of trio's clock.
    """

    def __init__(self, *, pace_seconds: float, return_seconds: float) -> None:
        self.present = 0
        """The number of requests that have their turn or wait for it."""
        self._pace = pace_seconds
        self._return = return_seconds
        self._head = trio.Lock()
        self._next_turn = self._next_return = 0.0

    @contextlib.asynccontextmanager
    async def turn(self, most: int) -> AsyncIterator[None]:
        """Wait for a turn, and hold it inside the block. A cancelled request leaves the queue.

        Raises ``QueueFull`` if ``most`` requests are present.
        """
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
