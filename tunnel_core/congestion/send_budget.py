"""How much may leave now: flight limit (``controller``) and cap (``token_bucket``) as one. No I/O, no clock.

1. The flight limit holds bulk back. The cap holds everything of the streams back, but neither pings nor
   confirmations nor what the session itself says: they are a debt, which the streams pay.
2. Whoever finds no room is to ask again at ``due``. It is a date for one look: who looked, or was told that
   the carrier is busy, clears it, else a timer would go off again and again while a write is under way.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from tunnel_core.congestion.controller import CongestionController
from tunnel_core.congestion.token_bucket import TokenBucket

PacketBudgets: TypeAlias = tuple[int, int]
"""Bytes of content that the next packet may hold: in all, and of what must not wait."""


class SendBudget:
    """Both bounds of one session. The flight is the carrier's, the cap outlives it."""

    __slots__ = ("cap", "due", "flight")

    def __init__(self, flight: CongestionController, cap: TokenBucket | None) -> None:
        self.flight = flight
        self.cap = cap
        self.due = math.inf
        """When there may be room for what was held back."""

    def ask(self, now: float) -> PacketBudgets | None:
        """For streams that have something to say; None: the cap lets nothing of them leave."""
        flight = self.flight
        most = flight.packet_bytes
        if self.cap is not None:
            room = self.cap.room(now)
            if not room:
                self.cap.hold(now)
                self.due = self.cap.deadline(now)
                return None
            most = min(most, room)
        if not flight.in_flight:
            self.due = math.inf
            return most, most
        bulk = min(most, flight.room(now))
        self.due = flight.deadline()
        return bulk, min(most, flight.priority_room(now))
