"""Targets, systems and plan of a run."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeVar, cast

from bench.plan import Plan
from bench.processes import BenchError, module
from bench.systems import grpc_baseline, qanat, ssh
from bench.systems.qanat import Product
from bench.systems.system import System, on_loopback

S = TypeVar("S", bound=System)
Starter: TypeAlias = Callable[[Mapping[str, int], Path], AbstractContextManager[System]]


@dataclass
class World:
    """Targets, systems and plan of a run. Systems start when a row needs them."""

    plan: Plan
    folder: Path
    targets: Mapping[str, int]
    stack: contextlib.ExitStack
    skipped: dict[str, str] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the run ends early, to stop rows that wait for minutes."""
    _shared: dict[str, System] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def systems(self) -> Sequence[System]:
        """Return the product, the baselines that run, and `direct`. Rows that compare share the processes."""
        grpc = self._baseline("grpc", grpc_baseline.running)
        ssh_r = None if self.no_ssh() else self._shared["ssh"]
        baselines = [system for system in (grpc, ssh_r) if system is not None]
        return [self.product(), *baselines, System("direct", on_loopback(self.targets))]

    def product(self) -> Product:
        """Return the product that rows share."""
        return self._share("qanat", self.fresh_product())

    def fresh_product(self, *, delay_seconds: float = 0.0) -> AbstractContextManager[Product]:
        """Start new processes of the product, for rows that measure memory or need their own line."""
        return qanat.running(self.targets, self.fresh("qanat"), delay_seconds=delay_seconds)

    def fresh_ssh(self, *, delay_seconds: float = 0.0) -> AbstractContextManager[System]:
        """Start new processes of `ssh -R`."""
        return ssh.running(self.targets, self.fresh("ssh"), delay_seconds=delay_seconds)

    def no_ssh(self) -> bool:
        """Whether `ssh -R` is missing or does not start; then note its columns as skipped."""
        if reason := ssh.missing():
            self.skipped["vs_ssh"] = reason
        else:
            self._baseline("ssh", ssh.running)
        return "vs_ssh" in self.skipped

    def _baseline(self, name: str, start: Starter) -> System | None:
        """Return the shared baseline; None if it does not start, and its columns are noted as skipped.

        It is tried once. The other systems are measured without it.
        """
        if f"vs_{name}" in self.skipped:
            return None
        try:
            return self._share(name, start(self.targets, self.fresh(name)))
        except (BenchError, OSError, subprocess.SubprocessError) as error:
            self.skipped[f"vs_{name}"] = "; ".join(str(error).splitlines())
            return None

    def fresh(self, name: str) -> Path:
        """Return a new path of this run."""
        return self.folder / f"{name}-{next(self._numbers)}"

    def _share(self, name: str, starting: AbstractContextManager[S]) -> S:
        """Return the shared system of this name; the first call enters `starting`."""
        if name not in self._shared:
            self._shared[name] = self.stack.enter_context(starting)
        return cast(S, self._shared[name])


@contextlib.contextmanager
def open_world(plan: Plan, folder: Path) -> Iterator[World]:
    """Start the targets; stop every process of the run at the end."""
    with (
        module("bench.target", log=folder / "target.log") as (_, ports),
        contextlib.ExitStack() as stack,
    ):
        yield World(plan, folder, ports, stack)
