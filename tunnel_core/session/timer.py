"""When a session has to be looked at next: its dates, and the sleep that ends at the first of them."""

from __future__ import annotations

import math

import trio

_FAR_SECONDS = 5.0
_PASSES = 20  # a second


def round_up_deadline(deadline: float, now: float) -> float:
    """Return a far deadline on the next twentieth of a second, so that one pass looks at many sessions."""
    return math.ceil(deadline * _PASSES) / _PASSES if now + _FAR_SECONDS < deadline < math.inf else deadline


class Timer:
    """The dates of one session. A date may come closer at any time, also while somebody sleeps."""

    __slots__ = ("_scope", "give_up_at", "late_again_at", "look_at", "send_at")

    def __init__(self) -> None:
        self.look_at = math.inf
        """When something is due. Set it by ``wake_by`` and ``look_now``."""
        self.send_at = math.inf
        """When frames that were deferred leave, if nothing takes them along before."""
        self.late_again_at = -math.inf
        """When the owner may be told again that something is late."""
        self.give_up_at = math.inf
        """When the carrier of an ended session is given up, whatever the peer has acknowledged by then."""
        self._scope = trio.CancelScope()

    async def sleep(self, look_at: float) -> None:
        """Sleep until ``look_at`` or ``send_at``, or until a date that came closer meanwhile."""
        self.look_at = look_at
        with trio.CancelScope(deadline=min(look_at, self.send_at)) as self._scope:
            await trio.sleep_forever()

    def wake_by(self, at: float) -> None:
        """Look at ``at`` at the latest."""
        if at < self.look_at:
            self.look_at = at
            if at < self.send_at:
                self._scope.deadline = at

    def look_now(self, now: float) -> None:
        """Look at once, and compute the next date anew."""
        self.look_at = self._scope.deadline = now

    def defer(self, seconds: float) -> None:
        """Something to send may wait for other frames; alone it leaves after ``seconds``."""
        at = trio.current_time() + seconds
        if at < self.send_at:
            self.send_at = at
            if at < self.look_at:
                self._scope.deadline = at

    def stop_deferring(self) -> None:
        """Nothing waits for other frames any more."""
        self.send_at = math.inf
        self._scope.deadline = self.look_at
