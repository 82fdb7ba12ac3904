"""When the way to the server counts as changed. No I/O; time comes in as ``now`` (seconds, any origin).

1. A way is (interface, source, gateway), as the kernel answers it for each address of the server.
2. It changed if any answer differs from the one before and there is a way at all. That it went away
   alone is nothing to act on: an attempt would fail. That it came back is, even if it is the old one,
   because what was sent meanwhile went nowhere.
3. Changes come in flocks (DHCP, IPv6, a VPN on top), so at most one is told in ``least_seconds``. What
   changes within them is told once at their end, if there is a way then.
4. A server that is told anew (``watch``) has no history: its first answer is no change. An address
   that was watched before keeps its own, so that a change during an attach is not lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tunnel_agent.network.netlink import KernelRoute

MAX_ADDRESSES = 16
"""Watched at once; a name may resolve to any number."""


class RouteChange:
    """Remembers the answers for the addresses that are watched."""

    def __init__(self, least_seconds: float) -> None:
        self._least_seconds = least_seconds
        self._answers: dict[str, KernelRoute | None] = {}
        self._unasked: list[str] = []
        self._pending = False
        self._told_at = -math.inf

    @property
    def addresses(self) -> tuple[str, ...]:
        """What to ask the kernel for."""
        return (*self._answers, *self._unasked)

    def watch(self, addresses: Iterable[str]) -> None:
        """From here on the server is at ``addresses``."""
        wanted = list(dict.fromkeys(addresses))[:MAX_ADDRESSES]
        self._unasked = [address for address in wanted if address not in self._answers]
        self._answers = {address: self._answers[address] for address in wanted if address in self._answers}

    def answered(self, routes: Mapping[str, KernelRoute | None]) -> None:
        """Takes what the kernel says of the addresses; those that it says nothing of stay as they were."""
        for address in self._unasked:
            if address in routes:
                self._answers[address] = routes[address]
        self._unasked = [address for address in self._unasked if address not in self._answers]
        now_known = {address: routes.get(address, known) for address, known in self._answers.items()}
        self._pending = self._pending or now_known != self._answers
        self._answers = now_known

    def due_at(self, now: float) -> float:
        """When a change is to be told; infinity while there is none, or no way."""
        if not self._pending or not any(self._answers.values()):
            return math.inf
        return max(now, self._told_at + self._least_seconds)

    def tell(self, now: float) -> bool:
        """Whether a change is told now; it counts as told."""
        if self.due_at(now) > now:
            return False
        self._pending, self._told_at = False, now
        return True
