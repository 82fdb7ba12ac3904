"""The effect of an attack on an innocent user: round trips of 64 bytes through a node, before and during it.

    with echo.measured() as under:
        attack()
    under.require(echo.rest)

The echoes come from a process of their own, so that a test which computes does not delay them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.e2e.attacks import pulse

REST_SECONDS = 1.0
FLOOR_SECONDS = 0.1
"""A p99 below this is never a failure: attacker, server, agent, target and the echo's own process share two
processors, and at rest an echo takes one or two milliseconds."""
SLOWER = "under attack"
"""The first words of the failure of an attack that delayed the echoes."""
TIMES = 20.0
"""How much longer than at rest the p99 may be, above the floor."""


@dataclass(frozen=True)
class Trips:
    """The echoes of one span of time: ``count`` were due, p50, p99 and longest are in seconds."""

    count: int
    p50: float
    p99: float
    longest: float
    failures: tuple[str, ...]

    @classmethod
    def of(cls, report: dict[str, Any]) -> Trips:
        seconds = report["seconds"]
        assert seconds, "no echo was due: the attack took less than 10 ms"
        return cls(
            len(seconds),
            seconds[len(seconds) // 2],
            seconds[len(seconds) * 99 // 100],
            seconds[-1],
            tuple(report["failures"]),
        )

    def require(self, rest: Trips, *, times: float = TIMES, floor_seconds: float = FLOOR_SECONDS) -> None:
        """Fail unless each echo came back, and p99 is at most ``times`` that at rest or at most the floor."""
        assert not self.failures, f"{len(self.failures)} echoes failed: {self.failures[:3]}; {self}"
        allowed = max(times * rest.p99, floor_seconds)
        assert self.p99 <= allowed, f"{SLOWER} {self}; at rest {rest}; allowed {allowed * 1000:.0f} ms"

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {getattr(self, name) * 1000:.1f} ms" for name in ("p50", "p99", "longest"))
        return f"{self.count} echoes: {shown}, {len(self.failures)} failed"


class Echo:
    """One user's echoes. ``rest`` has the calmest of three spans before any attack."""

    def __init__(self, request: dict[str, Any]) -> None:
        argv = [sys.executable, "-m", pulse.__name__, json.dumps(request)]
        self._child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - ours
        self._last: Trips | None = None
        try:
            self._report()
            self.rest = min((self.measure(REST_SECONDS) for _ in range(3)), key=lambda trips: trips.p99)
            assert not self.rest.failures, f"no attack has begun: {self.rest.failures[:3]}"
        except BaseException:
            self.close()
            raise

    def measure(self, seconds: float) -> Trips:
        """Return the echoes of the next ``seconds``."""
        self._report()
        time.sleep(seconds)  # what is measured is a span of time
        return Trips.of(self._report())

    @contextlib.contextmanager
    def measured(self) -> Iterator[Measured]:
        """Measure while the block runs; the result has its figures after the block."""
        measured = Measured()
        self._report()
        yield measured
        measured.trips = Trips.of(self._report())

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def _report(self) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(b"\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        assert line, f"the echo's process ended with {self._child.wait()}"
        report: dict[str, Any] = json.loads(line)
        return report


class Measured:
    """Filled in at the end of ``Echo.measured``'s block."""

    trips: Trips

    def require(self, rest: Trips, *, times: float = TIMES, floor_seconds: float = FLOOR_SECONDS) -> None:
        """As ``Trips.require``."""
        self.trips.require(rest, times=times, floor_seconds=floor_seconds)
