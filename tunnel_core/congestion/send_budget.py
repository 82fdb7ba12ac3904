"""Bytes that may leave now, by the in-flight limit and by the cap. No I/O, no clock.

1. The in-flight limit (``controller.py``) bounds bulk. The cap (``token_bucket.py``) bounds all that streams
   send, but never pings, acknowledgements or the frames of the session itself. Those become a debt of the
   cap, which the streams pay.
2. A session that finds no room asks again at ``due``. Each call of ``packet_budgets`` sets ``due`` anew. The
   session clears ``due`` when the time has come, because the carrier may be busy. Otherwise a timer would
   fire again and again while a write is under way.
3. A limit that held nothing back for a second starts again at its minimum, as TCP's window does after an idle
   time (RFC 2861, RFC 7661). The path may have become slow meanwhile. Then the old limit lets megabytes into
   TCP's buffer, where every later keystroke and pong waits behind them for more than a second.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from tunnel_core.congestion.controller import CongestionController
from tunnel_core.congestion.token_bucket import TokenBucket

PacketBudgets: TypeAlias = tuple[int, int]
"""Bytes of content that the next packet may hold: all content, and urgent content."""

_UNUSED_SECONDS = 1.0
"""Time beyond a round trip after which a limit that held nothing back starts again. TCP waits for 0.2 s."""


class SendBudget:
    """Both bounds of one session. The controller starts anew with each carrier; the cap outlives carriers."""

    __slots__ = ("_limit_used_at", "cap", "controller", "due")

    def __init__(self, controller: CongestionController, cap: TokenBucket | None) -> None:
        self.controller = controller
        self.cap = cap
        self.due = math.inf
        """When there may be room for bytes that were held back."""
        self._limit_used_at = -math.inf  # when the limit last held bytes back

    def packet_budgets(self, now: float) -> PacketBudgets | None:
        """Return the budgets of the next packet, or None if the cap lets no byte of a stream leave."""
        controller = self.controller
        if not controller.in_flight:
            self._restart_if_unused(now)
        budget = controller.packet_bytes
        if self.cap is not None:
            room = self.cap.room(now)
            if not room:
                self.cap.note_blocked(now)
                self.due = self.cap.deadline(now)
                return None
            budget = min(budget, room)
        if not controller.in_flight:
            self.due = math.inf
            return budget, budget
        bulk = min(budget, controller.room(now))
        if not bulk:
            self._limit_used_at = now
        self.due = controller.deadline()
        return bulk, min(budget, controller.priority_room(now))

    def _restart_if_unused(self, now: float) -> None:
        unused_seconds = now - self._limit_used_at
        if unused_seconds < _UNUSED_SECONDS:
            return
        if unused_seconds >= _UNUSED_SECONDS + self.controller.min_round_trip_seconds:
            self.controller.restart()
            self._limit_used_at = now
