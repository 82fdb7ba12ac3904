"""Listeners of a running server, each with its admission and its answer to a refused connection."""

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
"""Addresses (``host:port``, or the path of a unix socket) of each entrance."""
_DESCRIPTOR_SHARE = 8
"""Part of all descriptors that unauthenticated connections of one listener may hold; as many may wait. Half
stays for streams, agents and administrators."""
_DECLINES: Mapping[str, Decline] = {AGENTS: decline_tls, HTTPS: decline_tls}
"""Answer of a TCP listener when there are too many connections. The ``tcp`` entrance has no way to answer."""


def claim_descriptors(max_agents: int) -> int:
    """Raise the limit of open files of this process, and return the limit.

    Log a warning if the limit is too low for ``max_agents``.
    """
    limit = raise_descriptor_limit()
    if limit.carries >= max_agents:
        log_event(_log, logging.INFO, str(limit))
    else:
        sentence = f"{limit}, fewer than [agents] max = {max_agents}; raise LimitNOFILE= or ulimit -n"
        log_event(_log, logging.WARNING, sentence)
    return limit.now


class OpenListeners:
    """Open listeners, served in ``nursery``. ``reporter`` gets their refusals.

    ``max_agents`` is the number of agents that may be attached at once. ``descriptors`` is the process's
    limit of open files, of which each listener may use an eighth for unauthenticated connections. As many
    connections again may wait for admission, so two listeners leave half of the descriptors.
    """

    def __init__(
        self,
        limits: ListenerLimits,
        reporter: Reporter,
        nursery: trio.Nursery,
        *,
        max_agents: int,
        descriptors: int,
    ) -> None:
        self._listeners: list[Listener] = []
        self._limits = limits
        self._reporter = reporter
        self._nursery = nursery
        self._max_agents = max_agents
        self._max_unauthenticated = max(1, min(limits.max_unauthenticated, descriptors // _DESCRIPTOR_SHARE))

    async def open_tcp(self, entrance: str, addresses: Sequence[str], handler: Handler) -> None:
        """Listen on all ``addresses`` (``host:port``), which may be empty. Raises ``CannotListen``."""
        if addresses:
            admission, decline = self._admission(entrance), _DECLINES.get(entrance)
            gives_way = entrance != TCP  # its handler authenticates by the address, in its first step
            listener = await listen_tcp(
                entrance,
                addresses,
                admission,
                self._reporter,
                decline,
                gives_way=gives_way,
                is_carrier=entrance == AGENTS,
            )
            await self._serve(listener, handler)

    async def open_web(
        self, addresses: Sequence[str], handler: Handler, *, is_tls: bool, has_login: bool
    ) -> None:
        """Listen for browsers on all ``addresses``, which may be empty. Raises ``CannotListen``."""
        if addresses:
            decline = decline_tls if is_tls else decline_http
            admission = self._admission(WEB if has_login else TCP)
            await self._serve(await listen_tcp(WEB, addresses, admission, self._reporter, decline), handler)

    async def open_unix(self, entrance: str, address: UnixAddress, handler: Handler) -> None:
        """Listen on a unix socket. Raises ``CannotListen``."""
        admission = self._admission(entrance)
        await self._serve(listen_unix(entrance, address, admission, self._reporter, decline_http), handler)

    async def _serve(self, listener: Listener, handler: Handler) -> None:
        self._listeners.append(listener)
        await self._nursery.start(listener.serve, handler)

    def _admission(self, entrance: str) -> Admission:
        limits = self._limits
        if entrance == TCP:  # This entrance does not authenticate, so only the total counts.
            limit = limits.max_connections
            return Admission(limit, limit, limit, clock=trio.current_time)
        total: int = limits.max_connections
        if entrance == AGENTS:
            total = max(total, 2 * self._max_agents)
        return Admission(
            total,
            limits.max_unauthenticated_per_source,
            self._max_unauthenticated,
            clock=trio.current_time,
        )

    def addresses(self) -> dict[str, list[str]]:
        """Return the addresses of each entrance, in the order of opening."""
        found: dict[str, list[str]] = {}
        for listener in self._listeners:
            found.setdefault(listener.entrance, []).extend(listener.addresses)
        return found

    def stop_accepting(self) -> None:
        """Stop accepting connections. Open connections continue."""
        for listener in self._listeners:
            listener.stop_accepting()
