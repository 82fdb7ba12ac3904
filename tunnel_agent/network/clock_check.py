"""This machine's clock against a server's that was proven: by how much they differ, and what follows."""

from __future__ import annotations

from certs.life import BACK_DATED
from tunnel_agent.checks import CheckFailed
from tunnel_agent.network.server_path import SET_CLOCK
from tunnel_core.humanize import as_duration

_NOTICEABLE_SECONDS = 5.0
_YEAR_SECONDS = 365.25 * 24 * 3600
MOST_SECONDS = BACK_DATED.total_seconds()
"""Certificates are back-dated by as much; beyond it new ones would not hold here."""


def compare_clocks(server: str, behind_seconds: float) -> str:
    """``behind_seconds``: the server's clock less ours. Raises ``CheckFailed`` if the two differ too much."""
    if abs(behind_seconds) < _NOTICEABLE_SECONDS:
        return f"agrees with that of {server}"
    where = "behind" if behind_seconds > 0 else "ahead of"
    said = f"this machine's clock is {_apart(abs(behind_seconds))} {where} that of {server}"
    if abs(behind_seconds) < MOST_SECONDS:
        return f"{said}, which does no harm; {SET_CLOCK}"
    raise CheckFailed(f"{said}, more than certificates are made for", SET_CLOCK)


def _apart(seconds: float) -> str:
    return f"{seconds / _YEAR_SECONDS:.0f} years" if seconds > 2 * _YEAR_SECONDS else as_duration(seconds)
