"""What a check found: PASS, FAIL with the fix, or SKIP; one for each step."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

REJOIN = "join again with a new token: `qanat-agent join SERVER --again`"
"""The fix for a certificate that no server accepts any more."""


class Verdict(enum.Enum):
    PASS = "pass"  # noqa: S105 - a verdict
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of one step. ``fix`` says what to do and stands with failures alone.

    ``reason`` is the word of a server's refusal, if that was it.
    """

    step: str
    verdict: Verdict
    detail: str
    fix: str = ""
    reason: str = ""


Report: TypeAlias = Callable[[CheckResult], None]


class CheckFailed(Exception):  # noqa: N818 - named by what happened
    """A step failed. ``detail`` and ``fix`` are for the user; ``reason`` as in ``CheckResult``."""

    def __init__(self, detail: str, fix: str, reason: str = "") -> None:
        super().__init__(detail, fix, reason)
        self.detail = detail
        self.fix = fix
        self.reason = reason

    def finding(self, step: str) -> CheckResult:
        return CheckResult(step, Verdict.FAIL, self.detail, self.fix, self.reason)


CheckStep: TypeAlias = tuple[str, Callable[[], Awaitable[str]]]
"""A step's name, and what does it: returns what it found, or raises ``CheckFailed``."""


async def take_steps(steps: Sequence[CheckStep], report: Report) -> bool:
    """Takes the steps in order up to the first that fails, as each needs the one before it."""
    for name, step in steps:
        try:
            detail = await step()
        except CheckFailed as failure:
            report(failure.finding(name))
            return False
        report(CheckResult(name, Verdict.PASS, detail))
    return True
