"""Raise the limit of file descriptors, and compute how many agents and streams it allows."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass

_RESERVED = 128
"""Descriptors for listeners, files, the event loops and connections that are not authenticated yet."""


@dataclass(frozen=True, slots=True)
class DescriptorLimit:
    """Soft limit of open files, before and after ``raise_descriptor_limit``."""

    before: int
    now: int

    @property
    def carries(self) -> int:
        """Number of agents and streams together, because each holds one descriptor of this process."""
        return max(0, self.now - _RESERVED)

    def __str__(self) -> str:
        raised = f", raised from {self.before}" if self.now != self.before else ""
        return f"{self.now} file descriptors{raised}: room for {self.carries} agents and streams together"


def raise_descriptor_limit() -> DescriptorLimit:
    """Raise the soft limit to the hard limit if the system allows it. Return the limits before and after."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses an unlimited hard limit as the soft one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DescriptorLimit(before, now)
