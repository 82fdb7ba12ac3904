"""What one node may cause to be written in a while. No I/O, no clock.

Events, lines of the audit and of the log have a budget for each kind. What is beyond the budget is left out
and counted, and the next one that is written says how many were.

The budget of events is larger than that of attaches: the start and the end of a session are never left out.
"""

from __future__ import annotations

from tunnel_server.enrolment.budgets import Budgets

WRITES, WRITE_SECONDS = 60, 5.0
AUDIT_LINES, AUDIT_SECONDS = 60, 60.0
_MAX_KEYS = 50_000
"""All kinds of writes of a full server; what is forgotten has its whole budget back."""


class WriteBudget:
    """What each node may cause to be written. ``every_seconds`` holds after ``burst`` at once."""

    def __init__(self, burst: int = WRITES, every_seconds: float = WRITE_SECONDS) -> None:
        self._budgets = Budgets(burst, every_seconds, _MAX_KEYS)
        self._left_out: dict[str, int] = {}

    def note(self, node: str, kind: str, now: float) -> int | None:
        """None: leave it out. Else it may be written, and this many were left out before it."""
        key = f"{kind} {node}"
        if self._budgets.wait_seconds(key, now) > 0:
            if key in self._left_out or len(self._left_out) < _MAX_KEYS:
                self._left_out[key] = self._left_out.get(key, 0) + 1
            return None
        self._budgets.spend(key, now)
        return self._left_out.pop(key, 0)
