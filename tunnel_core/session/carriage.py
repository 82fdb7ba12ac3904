"""Which attempt carries a session now, and how its carrier learns that there is something to send."""

from __future__ import annotations

from tunnel_core.mux.mux import Mux
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.timer import Timer

_FIRST_SEND_SECONDS = 0.025
"""How long the agent lets the server send first on a carrier that the session moved to with its hello. A
key typed meanwhile comes right behind the welcome; its echo must not find all that TCP takes in before it."""


def _nothing() -> None:
    """Wake nothing: there is no carrier."""


class Carriage:
    """Joins the mux of one session to one carrier after another."""

    __slots__ = ("_mux", "_timer", "attempt")

    def __init__(self, mux: Mux, timer: Timer) -> None:
        self.attempt: Attachment | None = None
        self._mux = mux
        self._timer = timer

    def take(self, attempt: Attachment) -> None:
        """Abandon the carrier before; ``attempt`` is next. Nothing wakes its carrier yet."""
        self.leave()
        self.attempt = attempt

    def start(self) -> None:
        """Wake the carrier from here on.

        Not before the session has moved: the carrier may ask for packets at once.
        """
        assert self.attempt is not None
        carrier = self.attempt.carrier
        self._mux.wake, self._mux.wake_for_data = carrier.wake, carrier.wake_for_data

    def start_with_data(self, now: float) -> None:
        """Wake the carrier for data of streams only, for a moment. Everything else may travel with it."""
        assert self.attempt is not None
        self._mux.wake_for_data = self.attempt.carrier.wake_for_data
        self._timer.send_at = now + _FIRST_SEND_SECONDS

    def send_deferred(self) -> None:
        """Send what was deferred."""
        self._timer.stop_deferring()
        if self.attempt is not None:
            self._mux.wake = self.attempt.carrier.wake

    def leave(self) -> None:
        """Abandon the carrier, if there is one."""
        attempt, self.attempt = self.attempt, None
        self._mux.wake = self._mux.wake_for_data = _nothing
        if attempt is not None:
            attempt.abandon()
