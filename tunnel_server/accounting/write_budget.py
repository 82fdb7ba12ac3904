"""What one node may cause to be written in a while. No I/O, no clock.

Events, lines of the audit and of the log have a budget for each kind. What is beyond the budget is left out
and counted, and the next one that is written says how many were.

The budget of events is larger than that of attaches: the start and the end of a session are never left out.
"""

from __future__ import annotations

from tunnel_core.telemetry.line_limiter import LineLimiter

WRITES, WRITE_SECONDS = 60, 5.0
"""Events of one node and kind, and log lines of one node and kind."""
AUDIT_LINES, AUDIT_SECONDS = 60, 60.0
"""Lines of the audit for takeovers of one node."""
_MAX_KEYS = 50_000
"""All kinds of writes of a full server; what is forgotten has its whole budget back."""


def writes_budget() -> LineLimiter:
    """What each node may cause to be written, each kind by itself. Keys are (node, kind)."""
    return LineLimiter(WRITE_SECONDS, burst=WRITES, most=_MAX_KEYS)


def audit_budget() -> LineLimiter:
    """The same for lines of the audit."""
    return LineLimiter(AUDIT_SECONDS, burst=AUDIT_LINES, most=_MAX_KEYS)
