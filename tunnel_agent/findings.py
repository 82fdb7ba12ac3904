"""What a check found: PASS, FAIL with the fix, or SKIP; one for each step."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias


class Verdict(enum.Enum):
    PASS = "pass"  # noqa: S105 - a verdict
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one step. ``fix`` says what to do and stands with failures alone."""

    step: str
    verdict: Verdict
    detail: str
    fix: str = ""


Report: TypeAlias = Callable[[Finding], None]


class StepFailed(Exception):  # noqa: N818 - named by what happened
    """A step failed. Both texts are for the user."""

    def __init__(self, detail: str, fix: str) -> None:
        super().__init__(detail, fix)
        self.detail = detail
        self.fix = fix


Step: TypeAlias = tuple[str, Callable[[], Awaitable[str]]]
"""A step's name, and what does it: returns what it found, or raises ``StepFailed``."""


async def take_steps(steps: Sequence[Step], report: Report) -> bool:
    """Takes the steps in order up to the first that fails, as each needs the one before it."""
    for name, step in steps:
        try:
            detail = await step()
        except StepFailed as failure:
            report(Finding(name, Verdict.FAIL, failure.detail, failure.fix))
            return False
        report(Finding(name, Verdict.PASS, detail))
    return True
