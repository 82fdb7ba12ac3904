"""Allowed ranges for the settings that agent and server send each other in the attach.

1. Either end may have been taken over. Without ranges a server could have its agents ping a thousand times a
   second, take every silence for a loss, or keep their streams without a link for years.
2. A number out of its range refuses the attach, with a sentence that names the setting to correct. It is not
   replaced by the nearest number, because the other end would go by its own.
3. Both programs check their configuration by the same table, and do not start with what would be refused.

The other numbers of the protocol have their bounds where they are used: what was received and credited by
what was sent and granted, a round trip and a time to retry by a longest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tunnel_core.limits import MIB
from tunnel_core.wire.frames import Hello, Welcome

_HOUR_MS = 3_600_000
_MOST_COUNT = 2**31
_NO_SETTING = "update the older end"


class Range(NamedTuple):
    """``setting`` is the key that sets the number, or empty; ``or_zero``: 0 is allowed beside the range."""

    least: int
    most: int
    setting: str = ""
    or_zero: bool = False

    def holds(self, number: float) -> bool:
        """Whether ``number``, in the unit of the wire, is allowed."""
        return self.least <= number <= self.most or (self.or_zero and number == 0)


WELCOME: Mapping[str, Range] = MappingProxyType(
    {
        "ping_interval_ms": Range(100, _HOUR_MS, "[session] ping_interval_seconds"),
        "missed_pings": Range(1, 100, "[session] missed_pings"),
        "max_streams": Range(1, _MOST_COUNT, "[session] max_streams"),
        "early_data_limit": Range(0, 4 * MIB),
        "initial_credit": Range(1, 1024 * MIB),
        "grace_ms": Range(1, _HOUR_MS, "[session] grace_seconds", or_zero=True),
    }
)
"""Ranges of the numbers that the server sends in the attach."""
HELLO: Mapping[str, Range] = MappingProxyType(
    {
        "initial_credit": Range(1, 1024 * MIB, or_zero=True),
        "max_bytes_per_second": Range(1000, 10**10, "[link] max_bytes_per_second", or_zero=True),
    }
)
"""Ranges of the numbers that the agent sends in the attach."""


def why_out_of_range(frame: Hello | Welcome) -> str:
    """A sentence about the first number of ``frame`` that is out of its range; empty if none is."""
    end, ranges = ("server", WELCOME) if isinstance(frame, Welcome) else ("agent", HELLO)
    for name, allowed in ranges.items():
        number = getattr(frame, name)
        if not allowed.holds(number):
            cure = f"correct {allowed.setting} of the {end}" if allowed.setting else _NO_SETTING
            also = "0 or " if allowed.or_zero else ""
            sent = f"the {end} sent {name} = {number}"
            return f"{sent}; allowed is {also}{allowed.least} to {allowed.most}; {cure}"
    return ""
