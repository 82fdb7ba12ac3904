"""Compare this machine's clock with the clock of a verified server."""

from __future__ import annotations

from certs.validity import BACK_DATED
from tunnel_agent.checks import CheckFailed
from tunnel_agent.network.server_path import SET_CLOCK
from tunnel_core.humanize import as_duration

_NOTICEABLE_SECONDS = 5.0
_YEAR_SECONDS = 365.25 * 24 * 3600
MOST_SECONDS = BACK_DATED.total_seconds()
"""How far certificates are back-dated. A clock that is further behind rejects new certificates."""


def compare_clocks(server: str, behind_seconds: float) -> str:
    """Describe ``behind_seconds``, the server's clock minus this machine's clock.

    Raises ``CheckFailed`` if the clocks differ by more than certificates are back-dated.
    """
    if abs(behind_seconds) < _NOTICEABLE_SECONDS:
        return f"agrees with that of {server}"
    direction = "behind" if behind_seconds > 0 else "ahead of"
    sentence = f"this machine's clock is {_as_difference(abs(behind_seconds))} {direction} that of {server}"
    if abs(behind_seconds) < MOST_SECONDS:
        return f"{sentence}, which does no harm; {SET_CLOCK}"
    raise CheckFailed(f"{sentence}, more than certificates are made for", SET_CLOCK)


def _as_difference(seconds: float) -> str:
    return f"{seconds / _YEAR_SECONDS:.0f} years" if seconds > 2 * _YEAR_SECONDS else as_duration(seconds)
