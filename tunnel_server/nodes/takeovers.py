"""Stop two live agents with one node's certificate from taking the session from each other. No clock.

A single takeover is normal: an agent was restarted, or its machine was. Two rules distinguish two live agents
from one agent that restarts:

1. A run of the agent (``instance``) that was replaced and attaches again is alive, as is the attached run.
   This rule detects containers too, which share the boot id of their host. A restarted agent is a new run and
   a dead run never attaches again, so a crash loop does not match.
2. More than three takeovers between different boots in a minute come from two machines whose agents restart.

In both cases the attached agent stays, and the refusal asks the newcomer to wait a minute. The newcomer
retries again and again. After two minutes without a retry the server forgets the verdict. Until then it
refuses every other run while the attached run is alive. Otherwise a supervisor could restart the refused
agent, and the takeovers would continue.
"""

from __future__ import annotations

from collections import OrderedDict, deque

MOST_TAKEOVERS = 3
"""Takeovers of one node between different machines in a minute. An agent that was restarted takes over
once."""
WINDOW_SECONDS = 60.0
REMEMBERED_SECONDS = 120.0
RETRY_SECONDS = 60.0
EVENT_SECONDS = 45.0
"""Time between two ``duplicate`` events of one node. A refused agent asks at each address of the server, and
again each minute."""
REPLACED_SECONDS = 3600.0
"""Time for which a replaced run is remembered, longer than any wait between two attaches of one agent."""
MOST_REPLACED = 16
"""Runs remembered for each node. A crash loop must not push out a live agent of that node in ten seconds."""
MAX_NODES = 10_000


class TakeoverLimiter:
    """Count the takeovers of each node. All times are monotonic seconds; old entries are dropped."""

    def __init__(self) -> None:
        self._takeovers: dict[str, deque[float]] = {}
        self._replaced: OrderedDict[str, deque[tuple[bytes, float]]] = OrderedDict()
        self._until: dict[str, float] = {}
        self._last_event: dict[str, float] = {}  # time of the last event, for the nodes in _until

    def note_takeover(self, node: str, now: float) -> None:
        """Record that one machine took ``node`` over from another machine."""
        self._forget(now)
        self._takeovers.setdefault(node, deque(maxlen=MOST_TAKEOVERS)).append(now)

    def note_replaced(self, node: str, instance: bytes, now: float) -> None:
        """Record that run ``instance`` lost ``node`` to another run, on the same machine or on another."""
        self._forget(now)
        if not instance:
            return
        runs = self._replaced.setdefault(node, deque(maxlen=MOST_REPLACED))
        runs.append((instance, now))
        self._replaced.move_to_end(node)
        if len(self._replaced) > MAX_NODES:
            self._replaced.popitem(last=False)

    def must_refuse(self, node: str, instance: bytes, now: float, *, other_boot: bool) -> bool:
        """Whether run ``instance`` may not take ``node`` from the attached live run.

        A refusal extends the verdict by two minutes. ``other_boot``: the boot ids of the two runs differ.
        """
        times = self._takeovers.get(node, deque[float]())
        too_often = other_boot and len(times) == MOST_TAKEOVERS and times[0] > now - WINDOW_SECONDS
        if not (too_often or self._was_replaced(node, instance, now) or self.is_duplicate(node, now)):
            return False
        self._until[node] = now + REMEMBERED_SECONDS
        return True

    def is_news(self, node: str, now: float) -> bool:
        """Whether the refusal just made needs an event: at most one event of a node in 45 seconds."""
        if self._last_event.get(node, -EVENT_SECONDS) > now - EVENT_SECONDS:
            return False
        self._last_event[node] = now
        return True

    def is_duplicate(self, node: str, now: float) -> bool:
        """Whether an agent of this node was refused within the last two minutes."""
        return self._until.get(node, now) > now

    def _was_replaced(self, node: str, instance: bytes, now: float) -> bool:
        runs = self._replaced.get(node, ())
        return any(run == instance and since > now - REPLACED_SECONDS for run, since in runs)

    def _forget(self, now: float) -> None:
        for node in [node for node, times in self._takeovers.items() if times[-1] <= now - WINDOW_SECONDS]:
            del self._takeovers[node]
        for node in [node for node, until in self._until.items() if until <= now]:
            del self._until[node]
            self._last_event.pop(node, None)
        while self._replaced:
            node, runs = next(iter(self._replaced.items()))
            if runs[-1][1] > now - REPLACED_SECONDS:
                return  # the oldest comes first
            del self._replaced[node]
