"""Wait with a deadline for another process. The condition is polled, because no event announces it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_PAUSE_SECONDS = 0.02


class NotInTime(AssertionError):  # noqa: N818 - named by what happened
    """The condition did not hold within its deadline."""


def wait_until(condition: Callable[[], T | None], what: str, *, deadline_seconds: float = 10) -> T:
    """Return the first true value of ``condition``. Raises ``NotInTime``, which names ``what``.

    An ``OSError`` counts as false, because the other process may not listen yet.
    """
    end = time.monotonic() + deadline_seconds
    last: object = None
    while time.monotonic() < end:
        try:
            last = value = condition()
            if value:
                return value
        except OSError as error:
            last = error
        time.sleep(_PAUSE_SECONDS)
    raise NotInTime(f"not within {deadline_seconds:g} s: {what} (last: {last!r})")
