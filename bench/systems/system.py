"""A system as every row sees it: dials to the targets through the system, and its processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.load import Dial, dialler
from bench.places import HERE, Place


@dataclass(frozen=True)
class System:
    """A running tunnel. Each entry of `to` opens a connection to that target through it."""

    name: str
    to: Mapping[str, Dial]
    server_pids: tuple[int, ...] = ()
    agent_pids: tuple[int, ...] = ()
    logs: tuple[Path, ...] = field(default=(), repr=False)


def on_loopback(ports: Mapping[str, int], place: Place = HERE) -> dict[str, Dial]:
    """Return dials for targets on plain loopback ports of the place."""
    return {role: dialler("127.0.0.1", port, place) for role, port in ports.items()}
