"""The opens of one session that wait for the agent's answer, and their deadlines.

1. With a carrier, an open has ``open_timeout_seconds``, which includes the agent's dial.
2. Without a carrier, an unsent open waits ``open_wait_seconds`` for the next carrier. When the session
   resumes, the open gets the full ``open_timeout_seconds``; otherwise it is reset and the agent never sees
   it.
3. An open that was sent before the loss keeps its deadline. The agent may have dialled, so the open is never
   repeated on another session.
"""

from __future__ import annotations

import math

from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason
from tunnel_core.session.state import Loss
from tunnel_core.streams.tunnel_stream import TunnelStream


class PendingOpens:
    """Deadlines of unanswered opens.

    Both tables have the earliest deadline first, because all entries of a table add the same time to a rising
    clock.
    """

    def __init__(self, node: str, limits: Limits) -> None:
        self._node = node
        self._limits = limits
        self._sent: dict[TunnelStream, float] = {}
        self._waiting: dict[TunnelStream, float] = {}

    def add(self, stream: TunnelStream, now: float, loss: Loss | None) -> float:
        """Add a new open and return its deadline; ``loss`` is None while there is a carrier."""
        if loss is None:
            self._sent[stream] = deadline = now + self._limits.open_timeout_seconds
        else:
            self._waiting[stream] = deadline = now + self._limits.open_wait_seconds
        return deadline

    def forget(self, stream: TunnelStream) -> None:
        """Remove a stream whose open was answered, or whose owner has closed it. Idempotent."""
        self._sent.pop(stream, None)
        self._waiting.pop(stream, None)

    def lost(self, now: float) -> None:
        """Let the unsent opens wait for the next carrier."""
        for stream in [stream for stream in self._sent if not stream.open_sent]:
            del self._sent[stream]
            self._waiting[stream] = now + self._limits.open_wait_seconds

    def resumed(self, now: float) -> None:
        """Give the waiting opens the full time for an answer, because there is a carrier again."""
        waiting, self._waiting = self._waiting, {}
        self._sent |= dict.fromkeys(waiting, now + self._limits.open_timeout_seconds)

    @property
    def next_deadline(self) -> float:
        """Earliest deadline; infinity if no open waits."""
        return min(next(iter(self._sent.values()), math.inf), next(iter(self._waiting.values()), math.inf))

    def reset_overdue(self, now: float, loss: Loss | None) -> None:
        """Reset the streams whose deadline has passed, with a reason that names what they waited for."""
        for stream in [stream for stream, deadline in self._waiting.items() if deadline <= now]:
            assert loss is not None
            stream.reset(Reason.NODE_NOT_ATTACHED, link_lost(self._node, loss, now))
        seconds = self._limits.open_timeout_seconds
        for stream in [stream for stream, deadline in self._sent.items() if deadline <= now]:
            detail = (
                f"node {self._node} did not answer within {seconds:g} s whether it reached {stream.target}"
            )
            stream.reset(Reason.OPEN_TIMEOUT, detail)


def link_lost(node: str, loss: Loss, now: float) -> str:
    """Return the sentence for a user whose node has lost its carrier and may resume."""
    return f"node {node} is not attached: link lost {now - loss.at:.0f} s ago ({loss.detail})"
