"""Stop two live agents with one node's certificate from taking the session from each other. No clock.

A takeover is normal when it happens once: an agent was restarted, or its machine was. Two rules tell two
live agents from one that restarts:

1. A run of the agent (``instance``) that was replaced, and asks again, is alive. So is the run that is
   attached. This rule sees containers too: they share the boot id of their host. A restarted agent is a new
   run, and a dead one never asks again, so a crash loop does not match.
2. More than three takeovers between different boots in a minute are two machines whose agents restart too.

Then the agent that is attached stays, and the newcomer is told to wait a minute. It tries again all the
time. Two minutes without a try, and the verdict is forgotten. Until then every other run is refused while
the attached one is alive, because a supervisor may restart the refused agent, and the takeovers would go on.
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
"""How long a replaced run is remembered: longer than any wait between two attaches of one agent."""
MOST_REPLACED = 16
"""Runs remembered for each node. A crash loop must not push out the live agent beside it in ten seconds."""
MAX_NODES = 10_000


class TakeoverLimiter:
    """Counts takeovers of each node. It remembers a node only while there is something to remember."""

    def __init__(self) -> None:
        self._takeovers: dict[str, deque[float]] = {}
        self._replaced: OrderedDict[str, deque[tuple[bytes, float]]] = OrderedDict()
        self._until: dict[str, float] = {}
        self._told: dict[str, float] = {}  # when a refusal was last news, of the nodes in _until

    def note_takeover(self, node: str, now: float) -> None:
        """A machine took ``node`` over from another one."""
        self._forget(now)
        self._takeovers.setdefault(node, deque(maxlen=MOST_TAKEOVERS)).append(now)

    def note_replaced(self, node: str, instance: bytes, now: float) -> None:
        """The run ``instance`` lost ``node`` to another run, on the same machine or elsewhere."""
        self._forget(now)
        if not instance:
            return
        runs = self._replaced.setdefault(node, deque(maxlen=MOST_REPLACED))
        runs.append((instance, now))
        self._replaced.move_to_end(node)
        if len(self._replaced) > MAX_NODES:
            self._replaced.popitem(last=False)

    def must_refuse(self, node: str, instance: bytes, now: float, *, other_boot: bool) -> bool:
        """Whether run ``instance`` may not take ``node`` from the live run that has it.

        If so, the next two minutes are watched, too. ``other_boot``: the two differ in their boot ids.
        """
        times = self._takeovers.get(node, deque[float]())
        too_often = other_boot and len(times) == MOST_TAKEOVERS and times[0] > now - WINDOW_SECONDS
        if not (too_often or self._was_replaced(node, instance, now) or self.is_duplicate(node, now)):
            return False
        self._until[node] = now + REMEMBERED_SECONDS
        return True

    def is_news(self, node: str, now: float) -> bool:
        """Whether a refusal that was just given is worth an event. So is the next one after 45 seconds."""
        if self._told.get(node, -EVENT_SECONDS) > now - EVENT_SECONDS:
            return False
        self._told[node] = now
        return True

    def is_duplicate(self, node: str, now: float) -> bool:
        """Whether two agents were seen lately."""
        return self._until.get(node, now) > now

    def _was_replaced(self, node: str, instance: bytes, now: float) -> bool:
        runs = self._replaced.get(node, ())
        return any(run == instance and since > now - REPLACED_SECONDS for run, since in runs)

    def _forget(self, now: float) -> None:
        for node in [node for node, times in self._takeovers.items() if times[-1] <= now - WINDOW_SECONDS]:
            del self._takeovers[node]
        for node in [node for node, until in self._until.items() if until <= now]:
            del self._until[node]
            self._told.pop(node, None)
        while self._replaced:
            node, runs = next(iter(self._replaced.items()))
            if runs[-1][1] > now - REPLACED_SECONDS:
                return  # the oldest comes first
            del self._replaced[node]
