"""Results of checks: PASS, FAIL with the fix, or SKIP, one for each step."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

REJOIN = "join again with a new token: `qanat-agent join SERVER --again`"
"""The fix for a certificate that no server accepts any more."""


class Verdict(enum.Enum):
    """Outcome of one step."""

    PASS = "pass"  # noqa: S105 - a verdict
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Result of one step.

    ``fix`` is what to do about a failure. ``reason`` is the word of a server's refusal.
    """

    step: str
    verdict: Verdict
    detail: str
    fix: str = ""
    reason: str = ""


Report: TypeAlias = Callable[[CheckResult], None]


class CheckFailed(Exception):  # noqa: N818 - named after the event
    """A failed step. ``detail``, ``fix`` and ``reason`` are those of ``CheckResult``."""

    def __init__(self, detail: str, fix: str, reason: str = "") -> None:
        super().__init__(detail, fix, reason)
        self.detail = detail
        self.fix = fix
        self.reason = reason

    def as_result(self, step: str) -> CheckResult:
        """Return the failure as the result of ``step``."""
        return CheckResult(step, Verdict.FAIL, self.detail, self.fix, self.reason)


CheckStep: TypeAlias = tuple[str, Callable[[], Awaitable[str]]]
"""A step's name and its function, which returns a sentence or raises ``CheckFailed``."""


async def take_steps(steps: Sequence[CheckStep], report: Report) -> bool:
    """Take and report the steps up to the first failure, because each needs the previous ones.

    Returns whether all steps passed.
    """
    for name, step in steps:
        try:
            detail = await step()
        except CheckFailed as failure:
            report(failure.as_result(name))
            return False
        report(CheckResult(name, Verdict.PASS, detail))
    return True
