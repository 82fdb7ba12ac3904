"""Decide when the route to the server has changed. No I/O; time comes in as ``now`` (seconds, any origin).

1. A route is (interface, source, gateway), as the kernel answers it for each address of the server.
2. The route changed if any answer differs from the previous one and a route exists. The loss of a route alone
   is not reported, because an attempt would fail. The return of a route is reported, even of the same route,
   because the packets sent meanwhile were lost.
3. Changes come in groups (DHCP, IPv6, a VPN on top), so at most one is reported in ``least_seconds``. Further
   changes in that time are reported once at its end, if a route exists then.
4. The first answer for a new address of ``watch`` is not a change. An address that was watched before keeps
   its answer, so that a change during an attach is not lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tunnel_agent.network.netlink import KernelRoute

MAX_ADDRESSES = 16
"""Limit of watched addresses, because a name may resolve to any number."""


class RouteChange:
    """Routes of the watched addresses, and the change that is due to be reported."""

    def __init__(self, least_seconds: float) -> None:
        self._least_seconds = least_seconds
        self._answers: dict[str, KernelRoute | None] = {}
        self._unasked: list[str] = []
        self._pending = False
        self._reported_at = -math.inf

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses to ask the kernel about."""
        return (*self._answers, *self._unasked)

    def watch(self, addresses: Iterable[str]) -> None:
        """Watch ``addresses``, at which the server is reached from now on."""
        wanted = list(dict.fromkeys(addresses))[:MAX_ADDRESSES]
        self._unasked = [address for address in wanted if address not in self._answers]
        self._answers = {address: self._answers[address] for address in wanted if address in self._answers}

    def answered(self, routes: Mapping[str, KernelRoute | None]) -> None:
        """Record the kernel's answers. An address without an answer keeps its previous route."""
        for address in self._unasked:
            if address in routes:
                self._answers[address] = routes[address]
        self._unasked = [address for address in self._unasked if address not in self._answers]
        answers = {address: routes.get(address, known) for address, known in self._answers.items()}
        self._pending = self._pending or answers != self._answers
        self._answers = answers

    def due_at(self, now: float) -> float:
        """Return when to report a change; infinity without a change or without a route."""
        if not self._pending or not any(self._answers.values()):
            return math.inf
        return max(now, self._reported_at + self._least_seconds)

    def take_change(self, now: float) -> bool:
        """Whether a change is due now; the change then counts as reported."""
        if self.due_at(now) > now:
            return False
        self._pending, self._reported_at = False, now
        return True
