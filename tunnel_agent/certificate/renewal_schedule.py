"""Decide when a running agent renews its certificate. No I/O, clock or randomness.

1. A renewal is due at two thirds of the validity period, spread. The caller passes the wall clock's time at
   each call, because boards without a battery start in 1970 and learn the time later.
2. After a failure the agent retries after a two hundredth of the period, then doubles the wait up to a
   twentieth. A wait is between a second and an hour, so many tries precede the end.
3. Two renewals are at least a third of a period apart by the steady clock. With a wall clock that runs
   ahead, each new certificate looks due.
4. The agent does not renew an expired certificate, because no server accepts it. If the agent is attached all
   the same, this machine's clock is wrong, and the agent continues to try.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from certs.validity import ValidityPeriod

POLL_SECONDS = 5.0
"""How often the agent reads the clock and the file's state, which takes some ten microseconds."""
_FIRST_DIVISOR, _LAST_DIVISOR = 200, 20
"""First and longest wait after a failed renewal, as parts of the validity period. Many tries precede its
end."""
_LEAST_SECONDS, _MOST_SECONDS = 1.0, 3600.0
"""Bounds of that wait."""
_HOPELESS_SECONDS = 300.0


@dataclass(slots=True)
class RenewalPlan:
    """Renewal plan of one certificate. ``chance`` is a random number from 0 to 1."""

    validity: ValidityPeriod
    chance: float
    not_before: float
    """Time of the steady clock, in seconds."""
    failures: int = field(init=False, default=0)

    @property
    def at(self) -> datetime:
        """When the renewal is due, without failures."""
        return self.validity.renewal(self.chance)

    def wait_seconds(self, now: datetime, steady: float, *, attached: bool) -> float:
        """Return the seconds before the next try; 0: now. The caller asks again after ``POLL_SECONDS``."""
        if now >= self.validity.ends and not attached:
            return POLL_SECONDS
        return max(0.0, (self.at - now).total_seconds(), self.not_before - steady)

    def failed(self, steady: float, chance: float, *, hopeless: bool = False) -> float:
        """Note a failed try at ``steady``; return the seconds before the next one."""
        if hopeless:
            wait = _HOPELESS_SECONDS
        else:
            first = _bounded(self.validity.seconds() / _FIRST_DIVISOR)
            last = _bounded(self.validity.seconds() / _LAST_DIVISOR)
            wait = min(last, first * 2.0 ** min(self.failures, 30))
        self.failures += 1
        wait *= 0.5 + chance
        self.not_before = steady + wait
        return wait


def plan_after(validity: ValidityPeriod, steady: float, chance: float, *, renewed: bool) -> RenewalPlan:
    """Return the plan of a certificate that was loaded at ``steady``; ``renewed``: the agent renewed it."""
    pause = _bounded(validity.seconds() / 3) if renewed else 0.0
    return RenewalPlan(validity, chance, steady + pause)


def _bounded(seconds: float) -> float:
    return min(_MOST_SECONDS, max(_LEAST_SECONDS, seconds))
