"""Two machines with one node's certificate must not take the session from each other for ever. No clock.

A takeover between different boots is a machine that was restarted, once. More than three in a minute are
two machines, such as a cloned SD card: then the one that is attached stays, and the other is told to wait.
An agent of ours that was taken over waits 10 s, so two of them meet here in the fourth takeover, half a
minute after the first. The other one tries again all the time; two minutes without that, and it is gone.
"""

from __future__ import annotations

from collections import deque

MOST_TAKEOVERS = 3
WINDOW_SECONDS = 60.0
REMEMBERED_SECONDS = 120.0
RETRY_SECONDS = 60.0


class Duplicates:
    """Counts takeovers of each node. It remembers a node only while there is something to remember."""

    def __init__(self) -> None:
        self._takeovers: dict[str, deque[float]] = {}
        self._until: dict[str, float] = {}

    def note_takeover(self, node: str, now: float) -> None:
        """A machine took ``node`` over from another one."""
        self._forget(now)
        self._takeovers.setdefault(node, deque(maxlen=MOST_TAKEOVERS)).append(now)

    def is_one_too_many(self, node: str, now: float) -> bool:
        """Whether one more takeover now is to be refused; if so, the next two minutes are watched, too."""
        times = self._takeovers.get(node, deque[float]())
        recent = len(times) == MOST_TAKEOVERS and times[0] > now - WINDOW_SECONDS
        if not recent and not self.is_duplicate(node, now):
            return False
        self._until[node] = now + REMEMBERED_SECONDS
        return True

    def is_duplicate(self, node: str, now: float) -> bool:
        """Whether two machines were seen lately."""
        return self._until.get(node, now) > now

    def _forget(self, now: float) -> None:
        for node in [node for node, times in self._takeovers.items() if times[-1] <= now - WINDOW_SECONDS]:
            del self._takeovers[node]
        for node in [node for node, until in self._until.items() if until <= now]:
            del self._until[node]
