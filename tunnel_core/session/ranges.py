"""Allowed ranges for the settings that agent and server send each other in the attach.

1. Either end may be compromised. Without ranges, a server could make its agents ping a thousand times a
   second, or treat every silence as a loss. It could also make them keep streams without a carrier for years.
2. A number out of its range refuses the attach, with a sentence that names the setting to correct. The number
   is not clamped, because the other end would keep using its own.
3. Both programs check their configuration against this table and do not start with a number out of range.

The protocol's other numbers are checked where they are used. Acks and credit are checked against what was
sent and granted; round trips and retry times have a maximum.
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
    """Allowed values of one number: ``least`` to ``most``, and 0 with ``or_zero``.

    ``setting`` is the configuration key that sets the number; empty if there is none.
    """

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
    """Return a sentence about the first number of ``frame`` that is out of range; empty if none is."""
    end, ranges = ("server", WELCOME) if isinstance(frame, Welcome) else ("agent", HELLO)
    for name, allowed in ranges.items():
        number = getattr(frame, name)
        if not allowed.holds(number):
            remedy = f"correct {allowed.setting} of the {end}" if allowed.setting else _NO_SETTING
            zero = "0 or " if allowed.or_zero else ""
            sent = f"the {end} sent {name} = {number}"
            return f"{sent}; allowed is {zero}{allowed.least} to {allowed.most}; {remedy}"
    return ""
