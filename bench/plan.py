"""Durations and repetitions of the rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Durations and repetitions of one run."""

    whole: bool
    """Whether rows that take minutes are measured."""
    rounds: int
    memory_rounds: int
    """Rounds of memory rows, which need new processes each time and vary little."""
    bulk_seconds: float
    rate_seconds: float
    """Duration of the rows of echoes/s and connections/s."""
    echoes: int
    connects: int
    idle_streams: int
    ssh_idle_streams: int
    """Fewer, because `ssh -R` takes 43 ms to open each."""
    work_connections: int
    """Connections before the memory of quiet programs is measured."""
    work_mib: int
    """MiB each way before that."""
    quiet_seconds: float
    """Time between that work and its measurement."""
    fleet: int
    fleet_seconds: float
    """Duration of the fleet's measurement; its pings come every 15 s."""
    typing_seconds: float
    """Duration of the typing, with ten keys a second."""
    resuming: int
    """Number of nodes that lose their link together, with five streams each."""
    paths: int
    """Repetitions of each path; the row is their median."""


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
    work_connections=20_000,
    work_mib=4096,
    quiet_seconds=60,
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
    work_connections=500,
    work_mib=512,
    quiet_seconds=12,
    fleet=200,
    fleet_seconds=5,
    typing_seconds=5,
    resuming=40,
    paths=3,
)
