"""When a receiver confirms, and what it says with it. No I/O, no clock. ``controller.py`` is the other side.

1. Whatever leaves anyway carries the confirmation. A bare one costs a gRPC message, so it goes only
   - at once, when the sender asked for it (QUIC's IMMEDIATE_ACK, draft-ietf-quic-ack-frequency): the
     sender alone knows how much of its flight is 8 ms of the link, or that it waits;
   - after ``ack_every_bytes``, whatever the sender asks for;
   - after ``delay_seconds``, for what ends without asking.
2. With a confirmation goes the receiver's clock when the newest confirmed packet arrived. The sender
   thus learns what the way there took (up to a constant, the difference of the clocks), whatever the
   confirmation itself met on its way back: other bulk, a busy program, a delay of rule 1. Microseconds
   in 32 bits, wrapping; 0 is kept for "does not say".
"""

from __future__ import annotations

import math

from tunnel_core.limits import Limits

STAMP_MODULUS = 1 << 32


class AckScheduler:
    """What is owed to the sender of the other direction."""

    __slots__ = ("_arrived", "_bytes", "_delay", "_limits", "due")

    def __init__(self, limits: Limits, delay_seconds: float) -> None:
        self.due = math.inf
        """When a bare confirmation has to leave, if nothing else did."""
        self._limits = limits
        self._delay = delay_seconds
        self._bytes = 0
        self._arrived: float | None = None

    def received(self, size: int, now: float, *, at_once: bool) -> None:
        """A numbered packet came, in order. ``at_once``: its sender asks for a confirmation."""
        self._arrived = now
        self._bytes += size
        if at_once or self._bytes >= self._limits.ack_every_bytes:
            self.due = min(self.due, now)
        else:
            self.due = min(self.due, now + self._delay)

    def sent(self) -> int:
        """A packet leaves, and with it the confirmation. Returns the stamp it carries; 0: nothing new."""
        arrived, self._arrived = self._arrived, None
        self._bytes, self.due = 0, math.inf
        return 0 if arrived is None else int(arrived * 1e6) % STAMP_MODULUS or 1
