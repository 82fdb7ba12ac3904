"""What is written down of streams and refusals: one line at open, one at close, and the counts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tunnel_core.reasons import Reason, Refused

_log = logging.getLogger("qanat.streams")
_log_refusals = logging.getLogger("qanat.refusals")

QUIET_SECONDS = 1.0
"""Refusals before authentication get one line a second per reason; anybody can cause them."""
_NO_FAULT = {Reason.DONE, Reason.USER_LEFT, Reason.IDLE_TIMEOUT}


class StreamMetrics(Protocol):
    """The counts of streams; labels are entrances and reasons, so they are bounded."""

    def stream_opened(self, entrance: str, dial_seconds: float) -> None: ...
    def stream_closed(self, entrance: str, bytes_in: int, bytes_out: int, reason: Reason) -> None: ...
    def first_byte(self, entrance: str, seconds: float) -> None: ...
    def refused(self, entrance: str, reason: Reason) -> None: ...


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What every line about a stream says. ``stream`` is the id that the agent logs too."""

    stream: str
    node: str
    target: str
    user: str
    entrance: str
    source: str
    address: str = ""

    def fields(self) -> dict[str, object]:
        """As log fields."""
        return {name: getattr(self, name) for name in self.__slots__}


class Records:
    """Writes the lines and keeps the counts. ``lines`` says per entrance: ``all``, ``errors`` or ``none``."""

    def __init__(
        self,
        metrics: StreamMetrics,
        clock: Callable[[], float],
        lines: Mapping[str, str] | None = None,
        default_lines: str = "all",
    ) -> None:
        self.metrics = metrics
        self._clock = clock
        self._lines = dict(lines or {})
        self._default = default_lines
        self._said: dict[tuple[str, Reason], tuple[float, int]] = {}

    def opened(self, facts: StreamFacts, dial_seconds: float) -> None:
        """The far dial succeeded."""
        self.metrics.stream_opened(facts.entrance, dial_seconds)
        if self._wants(facts.entrance, error=False):
            extra = {**facts.fields(), "dial_seconds": round(dial_seconds, 6)}
            _log.info("stream %s opened to %s on %s", facts.stream, facts.target, facts.node, extra=extra)

    def closed(
        self, facts: StreamFacts, moved: tuple[int, int], seconds: float, reason: Reason, detail: str
    ) -> None:
        """An opened stream ended. ``moved`` is bytes from the target and bytes to it."""
        bytes_in, bytes_out = moved
        self.metrics.stream_closed(facts.entrance, bytes_in, bytes_out, reason)
        error = reason not in _NO_FAULT
        if self._wants(facts.entrance, error=error):
            extra = {
                **facts.fields(),
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
                "seconds": round(seconds, 6),
                "reason": reason.word,
                "detail": detail,
            }
            level = logging.WARNING if error else logging.INFO
            _log.log(level, "stream %s closed: %s", facts.stream, reason.word, extra=extra)

    def not_opened(self, facts: StreamFacts, seconds: float, refused: Refused) -> None:
        """An authenticated user was refused, by us or by the agent."""
        self.metrics.refused(facts.entrance, refused.reason)
        if self._wants(facts.entrance, error=True):
            extra = {**facts.fields(), "seconds": round(seconds, 6), "reason": refused.reason.word}
            _log.warning(
                "%s was refused %s on %s: %s",
                facts.user,
                facts.target,
                facts.node,
                refused.detail,
                extra=extra,
            )

    def refused(self, entrance: str, source: str, refused: Refused) -> None:
        """Somebody was refused before a stream was asked for; mostly before authentication."""
        self.metrics.refused(entrance, refused.reason)
        key = (entrance, refused.reason)
        last, left_out = self._said.get(key, (-float("inf"), 0))
        now = self._clock()
        if now < last + QUIET_SECONDS:
            self._said[key] = (last, left_out + 1)
            return
        self._said[key] = (now, 0)
        if self._wants(entrance, error=True):
            more = f" ({left_out} more since the last line)" if left_out else ""
            extra = {
                "entrance": entrance,
                "source": source,
                "reason": refused.reason.word,
                "left_out": left_out,
            }
            _log_refusals.warning("%s refused %s: %s%s", entrance, source, refused.detail, more, extra=extra)

    def _wants(self, entrance: str, *, error: bool) -> bool:
        wanted = self._lines.get(entrance, self._default)
        return wanted == "all" or (wanted == "errors" and error)
