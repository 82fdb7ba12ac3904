"""Record streams and refusals of all entrances in the log, the counters and the audit."""

from __future__ import annotations

from collections.abc import Callable

from tunnel_core.config.types import Log
from tunnel_core.reasons import Reason, Refused
from tunnel_core.telemetry import logs
from tunnel_core.telemetry.counters import Counters
from tunnel_core.telemetry.logs import RefusalLines, StreamFacts
from tunnel_server.accounting.refusal_audit import Refusals
from tunnel_server.accounting.stream_audit import StreamAudit


class StreamRecorder:
    """Recorder for all entrances. ``log`` selects the streams that are logged.

    ``clock`` gives monotonic seconds. ``refusals`` writes refused connections and requests to the audit, and
    ``streams`` records streams that ended.
    """

    def __init__(
        self,
        counters: Counters,
        log: Log,
        clock: Callable[[], float],
        refusals: Refusals,
        streams: StreamAudit,
    ) -> None:
        self._refusals = refusals
        self._streams = streams
        self._counters = counters
        self._log = log
        self._clock = clock
        self._lines = RefusalLines(log)

    def opened(self, facts: StreamFacts, dial_seconds: float, address: str) -> None:
        """Record that the agent dialled the target at ``address``, within ``dial_seconds``."""
        self._counters.stream_opened(facts.entrance)
        self._counters.dialled(facts.entrance, dial_seconds)
        logs.stream_opened(self._log, facts, address=address)

    def first_byte(self, entrance: str, seconds: float) -> None:
        """Record that the target's first byte came ``seconds`` after the stream was requested."""
        self._counters.first_byte(entrance, seconds)

    def closed(
        self,
        facts: StreamFacts,
        ended: tuple[Reason, str],
        *,
        grant: str,
        address: str,
        seconds: float,
        bytes_to_target: int,
        bytes_to_user: int,
    ) -> None:
        """Record the end of a stream that was opened at ``address``. ``grant`` is the id of its grant."""
        reason, detail = ended
        self._streams.note(
            facts,
            reason,
            grant=grant,
            address=address,
            seconds=seconds,
            bytes_to_target=bytes_to_target,
            bytes_to_user=bytes_to_user,
        )
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

    def not_opened(self, facts: StreamFacts, refused: Refused, *, grant: str, seconds: float) -> None:
        """Record that the policy, the node or the agent refused a stream of an authenticated user.

        ``grant`` is the id of the grant that allowed the stream, if one did.
        """
        self._streams.note(facts, refused.reason, grant=grant, seconds=seconds)
        self._counters.refused(facts.entrance, refused.reason)
        self._lines.stream_refused(facts, refused, now=self._clock())
        if refused.reason is Reason.NOT_GRANTED:
            self._refusals.note_user(facts.entrance, facts.user, facts.node, facts.source, refused)

    def refused(self, entrance: str, source: str, refused: Refused, *, in_audit: bool = False) -> None:
        """Record the refusal of a peer that is no authenticated user.

        ``in_audit``: the audit already has a line.
        """
        self._counters.refused_unauthenticated(entrance, refused.reason)
        self._lines.refused(entrance, source, refused, now=self._clock())
        if not in_audit:
            self._refusals.note(entrance, source, refused)

    def request_refused(self, entrance: str, user: str, source: str, refused: Refused) -> None:
        """Record that a user's request was refused before a stream, for example for a wrong node name."""
        self._counters.refused(entrance, refused.reason)
        self._lines.refused(entrance, source, refused, now=self._clock(), user=user)
        if refused.reason is Reason.NOT_GRANTED:
            self._refusals.note_user(entrance, user, "", source, refused)
        else:
            self._refusals.note(entrance, source, refused)
