"""What is written down of streams and refusals, for all entrances: the lines and the counts."""

from __future__ import annotations

from collections.abc import Callable

from tunnel_core.config.types import Log
from tunnel_core.reasons import Reason, Refused
from tunnel_core.telemetry import logs
from tunnel_core.telemetry.counters import Counters
from tunnel_core.telemetry.logs import RefusalLines, StreamFacts
from tunnel_server.accounting.refusal_audit import Refusals


class StreamRecorder:
    """``log`` says which streams get lines; ``clock`` gives steady seconds.

    ``refusals`` writes connections and requests that were not let in to the audit.
    """

    def __init__(
        self,
        counters: Counters,
        log: Log,
        clock: Callable[[], float],
        refusals: Refusals,
    ) -> None:
        self._refusals = refusals
        self._counters = counters
        self._log = log
        self._clock = clock
        self._lines = RefusalLines(log)

    def opened(self, facts: StreamFacts, dial_seconds: float, address: str) -> None:
        """The far dial succeeded, at ``address``."""
        self._counters.stream_opened(facts.entrance)
        self._counters.dialled(facts.entrance, dial_seconds)
        logs.stream_opened(self._log, facts, address=address)

    def first_byte(self, entrance: str, seconds: float) -> None:
        """The target's first byte came this long after the user's."""
        self._counters.first_byte(entrance, seconds)

    def closed(
        self,
        facts: StreamFacts,
        ended: tuple[Reason, str],
        *,
        seconds: float,
        bytes_to_target: int,
        bytes_to_user: int,
    ) -> None:
        """A stream that was opened has ended."""
        reason, detail = ended
        self._counters.stream_closed(
            facts.entrance, reason, bytes_to_target=bytes_to_target, bytes_to_user=bytes_to_user
        )
        logs.stream_closed(
            self._log,
            facts,
            reason,
            seconds=seconds,
            bytes_to_target=bytes_to_target,
            bytes_to_user=bytes_to_user,
            detail=detail,
        )

    def not_opened(self, facts: StreamFacts, refused: Refused) -> None:
        """An authenticated user was refused, by policy, node or agent."""
        self._counters.refused(facts.entrance, refused.reason)
        self._lines.stream_refused(facts, refused, now=self._clock())

    def refused(self, entrance: str, source: str, refused: Refused, *, in_audit: bool = False) -> None:
        """Somebody was refused before it was clear who it is. ``in_audit``: the audit has a line already."""
        self._counters.refused_unauthenticated(entrance, refused.reason)
        self._lines.refused(entrance, source, refused, now=self._clock())
        if not in_audit:
            self._refusals.note(entrance, source, refused)

    def request_refused(self, entrance: str, user: str, source: str, refused: Refused) -> None:
        """A known user was refused before a stream was asked for: the node's name is wrong, for example."""
        self._counters.refused(entrance, refused.reason)
        self._lines.refused(entrance, source, refused, now=self._clock(), user=user)
        self._refusals.note(entrance, source, refused)
