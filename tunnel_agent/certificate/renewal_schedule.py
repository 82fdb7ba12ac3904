"""When a running agent renews its certificate. No I/O, no clock, no chance.

1. At two thirds of its life, spread; by the wall clock, which is asked again again and again: boards
   without a battery wake in 1970 and are told the time later.
2. After a failure soon again, then rarer, always long before the end: between a two hundredth and a
   twentieth of the life, and not below a second nor above an hour.
3. Never twice within a third of a life, by the steady clock: with a wall clock that runs ahead each new
   certificate looks as if it were due.
4. What has ended is not renewed: no server takes it. If the agent is attached all the same, the clock is
   wrong and not the certificate, and it goes on trying.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from certs.life import ValidityPeriod

LOOK_SECONDS = 5.0
"""How often the clock and the file are looked at: some ten microseconds of work."""
_FIRST_PART, _LAST_PART = 200, 20
"""First and longest wait after a failed renewal, as parts of the life: many tries before the end."""
_LEAST_SECONDS, _MOST_SECONDS = 1.0, 3600.0
"""Bounds of that wait."""
_HOPELESS_SECONDS = 300.0


@dataclass(slots=True)
class RenewalPlan:
    """Of one certificate. ``chance`` is a random number from 0 to 1; steady times are in seconds."""

    life: ValidityPeriod
    chance: float
    not_before: float
    """Of the steady clock."""
    failures: int = field(init=False, default=0)

    @property
    def at(self) -> datetime:
        """When it is due, if nothing goes wrong."""
        return self.life.renewal(self.chance)

    def wait_seconds(self, now: datetime, steady: float, *, attached: bool) -> float:
        """How long to wait before the next try; 0: now. Ask again at the latest after ``LOOK_SECONDS``."""
        if now >= self.life.ends and not attached:
            return LOOK_SECONDS
        return max(0.0, (self.at - now).total_seconds(), self.not_before - steady)

    def failed(self, steady: float, chance: float, *, hopeless: bool = False) -> float:
        """A try came to nothing. Returns how long the next one waits."""
        if hopeless:
            wait = _HOPELESS_SECONDS
        else:
            first, last = (_bounded(self.life.seconds() / part) for part in (_FIRST_PART, _LAST_PART))
            wait = min(last, first * 2.0 ** min(self.failures, 30))
        self.failures += 1
        wait *= 0.5 + chance
        self.not_before = steady + wait
        return wait


def plan_after(life: ValidityPeriod, steady: float, chance: float, *, renewed: bool) -> RenewalPlan:
    """For a certificate that was just taken up; ``renewed``: it came from a renewal of ours."""
    pause = _bounded(life.seconds() / 3) if renewed else 0.0
    return RenewalPlan(life, chance, steady + pause)


def _bounded(seconds: float) -> float:
    return min(_MOST_SECONDS, max(_LEAST_SECONDS, seconds))
