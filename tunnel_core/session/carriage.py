"""The current carrier of a session, and the callbacks by which the mux wakes that carrier."""

from __future__ import annotations

from tunnel_core.mux.mux import Mux
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.timer import Timer

_FIRST_SEND_SECONDS = 0.025
"""How long the agent defers its own packets on a carrier that its hello used, so that the server sends first.
The server sends a key typed meanwhile right behind the welcome. The key's echo must not queue in TCP behind
the agent's bulk data."""


def _wake_no_carrier() -> None:
    """Do nothing, because there is no carrier to wake."""


class Carriage:
    """Connect the mux of one session to one carrier after another."""

    __slots__ = ("_mux", "_timer", "attachment")

    def __init__(self, mux: Mux, timer: Timer) -> None:
        self.attachment: Attachment | None = None
        self._mux = mux
        self._timer = timer

    def replace(self, attachment: Attachment) -> None:
        """Abandon the old carrier and use ``attachment``. The mux does not wake the new carrier yet."""
        self.abandon()
        self.attachment = attachment

    def start(self) -> None:
        """Let the mux wake the carrier for every frame.

        Call it after the protocol has moved, because the carrier may ask for packets at once.
        """
        assert self.attachment is not None
        carrier = self.attachment.carrier
        self._mux.wake, self._mux.wake_for_data = carrier.wake, carrier.wake_for_data

    def start_with_data(self, now: float) -> None:
        """Let the mux wake the carrier for stream data only; other frames leave with data or soon after."""
        assert self.attachment is not None
        self._mux.wake_for_data = self.attachment.carrier.wake_for_data
        self._timer.send_at = now + _FIRST_SEND_SECONDS

    def send_deferred(self) -> None:
        """Stop deferring: let the mux wake the carrier for every frame."""
        self._timer.stop_deferring()
        if self.attachment is not None:
            self._mux.wake = self.attachment.carrier.wake

    def abandon(self) -> None:
        """Abandon the carrier, if there is one."""
        attachment, self.attachment = self.attachment, None
        self._mux.wake = self._mux.wake_for_data = _wake_no_carrier
        if attachment is not None:
            attachment.abandon()
