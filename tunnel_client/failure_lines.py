"""Report failures of many connections in few lines: the first of a kind at once, then counts each second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

_INTERVAL_SECONDS = 1.0

Report = Callable[[str], None]


@dataclass(slots=True)
class _Kind:
    reported_at: float
    left_out: int = 0
    last: str = ""


class FailureLines:
    """Lines about failed connections. ``report`` is called with each line, and must not block or raise."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._kinds: dict[str, _Kind] = {}

    def note(self, kind: str, sentence: str) -> None:
        """Note a connection that was reset. ``kind`` must come from a bounded set, such as reasons."""
        now = trio.current_time()
        known = self._kinds.get(kind)
        if known is None or (not known.left_out and now - known.reported_at >= _INTERVAL_SECONDS):
            self._kinds[kind] = _Kind(now)
            self._report(sentence)
            return
        known.left_out += 1
        known.last = sentence

    def flush(self) -> None:
        """Report the number of failures without a line, one line for each kind."""
        for known in self._kinds.values():
            if known.left_out:
                more = "1 more connection was" if known.left_out == 1 else f"{known.left_out} more were"
                self._report(f"{more} reset: {known.last}")
                known.reported_at, known.left_out = trio.current_time(), 0

    async def run(self) -> None:
        """Flush once a second until cancelled, and once more after cancellation."""
        try:
            while True:
                await trio.sleep(_INTERVAL_SECONDS)
                self.flush()
        finally:
            self.flush()
