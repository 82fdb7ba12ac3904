"""The opens of one session that wait for their answer, and how long each may.

An open that could be said has ``open_timeout_seconds``: the agent dials meanwhile. One that waits for a
link that is lost has ``open_wait_seconds``, and leaves no trace if it is not said by then; the link's
return gives it the full time. One that was said before the loss keeps its time: whether the agent
dialled is not known, and so it is never said on another session.
"""

from __future__ import annotations

import math

from tunnel_core.limits import Limits
from tunnel_core.reasons import Reason
from tunnel_core.session.state import Loss
from tunnel_core.streams.tunnel_stream import TunnelStream


class PendingOpens:
    """Both tables have the earliest deadline first, as each adds the same time to a rising clock."""

    def __init__(self, node: str, limits: Limits) -> None:
        self._node = node
        self._limits = limits
        self._sent: dict[TunnelStream, float] = {}
        self._waiting: dict[TunnelStream, float] = {}

    def add(self, stream: TunnelStream, now: float, loss: Loss | None) -> float:
        """A new open; returns its deadline."""
        if loss is None:
            self._sent[stream] = deadline = now + self._limits.open_timeout_seconds
        else:
            self._waiting[stream] = deadline = now + self._limits.open_wait_seconds
        return deadline

    def forget(self, stream: TunnelStream) -> None:
        """It was answered, or nobody waits for it any more."""
        self._sent.pop(stream, None)
        self._waiting.pop(stream, None)

    def lost(self, now: float) -> None:
        """There is no carrier: what has not been said waits for the next one."""
        for stream in [stream for stream in self._sent if not stream.open_sent]:
            del self._sent[stream]
            self._waiting[stream] = now + self._limits.open_wait_seconds

    def resumed(self, now: float) -> None:
        """There is a carrier again."""
        waiting, self._waiting = self._waiting, {}
        self._sent |= dict.fromkeys(waiting, now + self._limits.open_timeout_seconds)

    @property
    def next_deadline(self) -> float:
        return min(next(iter(self._sent.values()), math.inf), next(iter(self._waiting.values()), math.inf))

    def reset_overdue(self, now: float, loss: Loss | None) -> None:
        """Resets the streams whose time is over, with a reason that says what they waited for."""
        for stream in [stream for stream, deadline in self._waiting.items() if deadline <= now]:
            assert loss is not None
            stream.reset(Reason.NODE_NOT_ATTACHED, link_lost(self._node, loss, now))
        seconds = self._limits.open_timeout_seconds
        for stream in [stream for stream, deadline in self._sent.items() if deadline <= now]:
            detail = f"node {self._node} did not say within {seconds:g} s whether it reached {stream.target}"
            stream.reset(Reason.OPEN_TIMEOUT, detail)


def link_lost(node: str, loss: Loss, now: float) -> str:
    """The sentence for a user whose node is away, and may come back."""
    return f"node {node} is not attached: link lost {now - loss.at:.0f} s ago ({loss.detail})"
