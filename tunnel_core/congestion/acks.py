"""Decide when a receiver acknowledges, and with which time stamp. No I/O, no clock. See ``controller.py``.

1. Every packet that leaves carries the newest acknowledgement. A bare acknowledgement costs a gRPC message,
   so the receiver sends one only in three cases:
   - immediately, when the sender requests it (QUIC's IMMEDIATE_ACK, draft-ietf-quic-ack-frequency). Only
     the sender knows how many bytes its link carries in a few milliseconds, or that it waits for room;
   - after ``ack_every_bytes``, whatever the sender requests;
   - after ``delay_seconds``, for transfers that end without a request.
2. The acknowledgement carries the receiver's clock at the arrival of the newest acknowledged packet. So the
   sender learns the one-way delay, up to a constant (the difference of the clocks). Delays of the
   acknowledgement itself do not matter: bulk in its direction, a busy program, the delay of rule 1. The stamp
   is microseconds in 32 bits, wrapping; 0 means "no stamp".
"""

from __future__ import annotations

import math

from tunnel_core.limits import Limits

STAMP_MODULUS = 1 << 32


class AckScheduler:
    """The acknowledgements that this end owes for packets it received.

    ``delay_seconds`` bounds their delay.
    """

    __slots__ = ("_arrived", "_bytes", "_delay", "_limits", "due")

    def __init__(self, limits: Limits, delay_seconds: float) -> None:
        self.due = math.inf
        """When a bare acknowledgement must leave, if no other packet leaves before."""
        self._limits = limits
        self._delay = delay_seconds
        self._bytes = 0
        self._arrived: float | None = None

    def received(self, size: int, now: float, *, at_once: bool) -> None:
        """Count a numbered packet of ``size`` bytes, in order.

        ``at_once``: its sender requests an immediate ack.
        """
        self._arrived = now
        self._bytes += size
        if at_once or self._bytes >= self._limits.ack_every_bytes:
            self.due = min(self.due, now)
        else:
            self.due = min(self.due, now + self._delay)

    def sent(self) -> int:
        """Note that a packet leaves with the acknowledgement.

        Return its stamp, or 0 if nothing new arrived.
        """
        arrived, self._arrived = self._arrived, None
        self._bytes, self.due = 0, math.inf
        return 0 if arrived is None else int(arrived * 1e6) % STAMP_MODULUS or 1
