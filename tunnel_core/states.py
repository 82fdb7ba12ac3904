"""How a session stands, in the same words on both ends."""

from __future__ import annotations

import enum
from typing import NamedTuple

from tunnel_core.reasons import Reason


class LinkState(enum.Enum):
    ATTACHED = "attached"
    DEGRADED = "degraded"
    """There is a carrier, and something sent over it is late."""
    GRACE = "grace"
    """There is no carrier; streams wait for the next one."""
    ENDED = "ended"


class LinkEvent(enum.Enum):
    """What an owner of a link hears of."""

    LATE = "late"
    """Something is late. The agent only, and twice a second while it is."""
    LOST = "lost"
    RESUMED = "resumed"


class Loss(NamedTuple):
    """Since when there is no carrier, in the link's clock, and what became of the last one."""

    at: float
    reason: Reason
    detail: str
