"""Rate limits for what one node causes to be written. No I/O, no clock.

Events, audit lines and log lines have a budget for each kind. Lines and events beyond the budget are left
out and counted; the next one that is written gives their number.

The budget of events is larger than that of attaches, so the start and the end of a session are never left
out.
"""

from __future__ import annotations

from tunnel_core.telemetry.line_limiter import LineLimiter

WRITES, WRITE_SECONDS = 60, 5.0
"""Events of one node and kind, and log lines of one node and kind."""
AUDIT_LINES, AUDIT_SECONDS = 60, 60.0
"""Lines of the audit for takeovers of one node."""
_MAX_KEYS = 50_000
"""All kinds of writes of a full server. A key that is dropped gets its whole budget back."""


def writes_budget() -> LineLimiter:
    """Return the budget of each node for events and log lines. Keys are (node, kind)."""
    return LineLimiter(WRITE_SECONDS, burst=WRITES, most=_MAX_KEYS)


def audit_budget() -> LineLimiter:
    """Return the budget of each node for audit lines. Keys are (node, kind)."""
    return LineLimiter(AUDIT_SECONDS, burst=AUDIT_LINES, most=_MAX_KEYS)
