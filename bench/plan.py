"""How long and how often each row measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    whole: bool
    """Whether rows that take minutes are measured."""
    rounds: int
    memory_rounds: int
    """For what needs fresh processes each time, and varies little."""
    bulk_seconds: float
    rate_seconds: float
    """For echoes/s and connections/s."""
    echoes: int
    connects: int
    idle_streams: int
    ssh_idle_streams: int
    """Fewer, as `ssh -R` takes 43 ms to open each."""
    fleet: int
    fleet_seconds: float
    """How long the fleet is watched; its pings come every 15 s."""
    typing_seconds: float
    """Ten keys a second."""
    resuming: int
    """Nodes that lose their link together, with five streams each."""
    paths: int
    """Repetitions, of which the median counts."""


WHOLE = Plan(
    whole=True,
    rounds=5,
    memory_rounds=5,
    bulk_seconds=1.5,
    rate_seconds=1.5,
    echoes=2000,
    connects=300,
    idle_streams=800,
    ssh_idle_streams=200,
    fleet=2000,
    fleet_seconds=45,
    typing_seconds=12,
    resuming=200,
    paths=15,
)
QUICK = Plan(
    whole=False,
    rounds=2,
    memory_rounds=1,
    bulk_seconds=0.35,
    rate_seconds=0.35,
    echoes=300,
    connects=30,
    idle_streams=400,
    ssh_idle_streams=50,
    fleet=200,
    fleet_seconds=5,
    typing_seconds=5,
    resuming=40,
    paths=3,
)
