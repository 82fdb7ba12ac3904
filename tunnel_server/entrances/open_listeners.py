"""The listeners of a running server: each with its admission, and with the words for a refused connection."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import trio

from tunnel_core.http.declining import Decline, decline_http, decline_tls
from tunnel_core.runtime.fd_limits import raise_descriptor_limit
from tunnel_core.telemetry.logs import log_event
from tunnel_server.config import ListenerLimits
from tunnel_server.entrances.agents import ENTRANCE as AGENTS
from tunnel_server.entrances.tcp import ENTRANCE as TCP
from tunnel_server.entrances.web.entrance import ENTRANCE as WEB
from tunnel_server.listeners.addresses import UnixAddress
from tunnel_server.listeners.admission import Admission
from tunnel_server.listeners.listener import Handler, Listener, Reporter, listen_tcp, listen_unix

_log = logging.getLogger("qanat.server")

HTTPS = "https"
Addresses: TypeAlias = Mapping[str, Sequence[str]]
"""The addresses (``host:port``, or a path) at which each entrance listens."""
_DESCRIPTOR_SHARE = 8
"""Part of all descriptors that unauthenticated connections of one listener may hold; as many may wait. Half
stays for streams, agents and administrators."""
_DECLINES: Mapping[str, Decline] = {AGENTS: decline_tls, HTTPS: decline_tls, WEB: decline_http}
"""How a TCP listener tells a connection that there are too many. The ``tcp`` entrance has no words for it."""


def claim_descriptors(most_agents: int) -> int:
    """Raise the process's limit of file descriptors, and return it. Log a warning if it is too low."""
    limit = raise_descriptor_limit()
    if limit.carries >= most_agents:
        log_event(_log, logging.INFO, str(limit))
    else:
        sentence = f"{limit}, fewer than [agents] max = {most_agents}; raise LimitNOFILE= or ulimit -n"
        log_event(_log, logging.WARNING, sentence)
    return limit.now


class OpenListeners:
    """Open listeners by entrance. Each is served in ``nursery``; ``reporter`` gets what they refuse.

    ``most_agents`` may be attached at once. ``descriptors`` is how many file descriptors the process may
    have, which bounds the unauthenticated connections of each listener. A listener has as many connections
    that wait as unauthenticated ones, so two listeners leave half of the descriptors.
    """

    def __init__(
        self,
        limits: ListenerLimits,
        reporter: Reporter,
        nursery: trio.Nursery,
        *,
        most_agents: int,
        descriptors: int,
    ) -> None:
        self._listeners: list[Listener] = []
        self._limits = limits
        self._reporter = reporter
        self._nursery = nursery
        self._most_agents = most_agents
        self._max_unauthenticated = max(1, min(limits.max_unauthenticated, descriptors // _DESCRIPTOR_SHARE))

    async def open_tcp(self, entrance: str, addresses: Sequence[str], handler: Handler) -> None:
        """Listen on all ``addresses`` (``host:port``), if there are any. Raises ``CannotListen``."""
        if addresses:
            admission, decline = self._admission(entrance), _DECLINES.get(entrance)
            listener = await listen_tcp(entrance, addresses, admission, self._reporter, decline)
            await self._serve(listener, handler)

    async def open_unix(self, entrance: str, address: UnixAddress, handler: Handler) -> None:
        """Listen on a unix socket. Raises ``CannotListen``."""
        admission = self._admission(entrance)
        await self._serve(listen_unix(entrance, address, admission, self._reporter, decline_http), handler)

    async def _serve(self, listener: Listener, handler: Handler) -> None:
        self._listeners.append(listener)
        await self._nursery.start(listener.serve, handler)

    def _admission(self, entrance: str) -> Admission:
        limits = self._limits
        if entrance in (TCP, WEB):  # these ask for no identity, so only the total counts
            most = limits.max_connections
            return Admission(most, most, most, clock=trio.current_time)
        total: int = limits.max_connections
        if entrance == AGENTS:
            total = max(total, 2 * self._most_agents)
        return Admission(
            total,
            limits.max_unauthenticated_per_source,
            self._max_unauthenticated,
            clock=trio.current_time,
        )

    def addresses(self) -> dict[str, list[str]]:
        """Return the addresses of each entrance, in the order in which they were opened."""
        found: dict[str, list[str]] = {}
        for listener in self._listeners:
            found.setdefault(listener.entrance, []).extend(listener.addresses)
        return found

    def stop_accepting(self) -> None:
        """Accept no more connections; those that are open go on."""
        for listener in self._listeners:
            listener.stop_accepting()
