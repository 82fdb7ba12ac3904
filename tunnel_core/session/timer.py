"""The deadlines of a session, and the sleep that ends at the earliest of them."""

from __future__ import annotations

import math

import trio

_FAR_SECONDS = 5.0
_WAKES_PER_SECOND = 20


def round_up_deadline(deadline: float, now: float) -> float:
    """Round a far deadline up to the next common wake-up.

    Many idle sessions then share one wake-up of the process.
    """
    is_far = now + _FAR_SECONDS < deadline < math.inf
    return math.ceil(deadline * _WAKES_PER_SECOND) / _WAKES_PER_SECOND if is_far else deadline


class Timer:
    """The deadlines of one session, in trio's clock. A deadline may move closer while a task sleeps."""

    __slots__ = ("_scope", "give_up_at", "late_again_at", "send_at", "wake_at")

    def __init__(self) -> None:
        self.wake_at = math.inf
        """When ``sleep`` ends for the session's deadlines. Set it by ``wake_by`` and ``wake_now``."""
        self.send_at = math.inf
        """When deferred frames leave, if no other packet takes them before."""
        self.late_again_at = -math.inf
        """Earliest time of the next ``SessionEvent.LATE``."""
        self.give_up_at = math.inf
        """When the grace ends; after the session's end, when its carrier is abandoned."""
        self._scope = trio.CancelScope()

    async def sleep(self, wake_at: float) -> None:
        """Sleep until ``wake_at`` or ``send_at``, or until a deadline that moved closer meanwhile."""
        self.wake_at = wake_at
        with trio.CancelScope(deadline=min(wake_at, self.send_at)) as self._scope:
            await trio.sleep_forever()

    def wake_by(self, at: float) -> None:
        """End the sleep at ``at`` at the latest."""
        if at < self.wake_at:
            self.wake_at = at
            if at < self.send_at:
                self._scope.deadline = at

    def wake_now(self, now: float) -> None:
        """End the sleep at once, so that the session computes its next deadline anew."""
        self.wake_at = self._scope.deadline = now

    def defer(self, seconds: float) -> None:
        """Defer pending frames for at most ``seconds``, so that they travel with others."""
        at = trio.current_time() + seconds
        if at < self.send_at:
            self.send_at = at
            if at < self.wake_at:
                self._scope.deadline = at

    def stop_deferring(self) -> None:
        """Forget the time at which deferred frames leave."""
        self.send_at = math.inf
        self._scope.deadline = self.wake_at
