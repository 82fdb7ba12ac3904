"""The ``tcp`` entrance: a local port bound to one node and target, for any TCP client.

This entrance cannot authenticate its users, because it sees only a source address. So it listens on loopback
unless the configuration lists the networks that may connect.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from tunnel_core.identity import Role
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_server.access.opener import NotOpened, Opener, StreamRequest
from tunnel_server.access.routing import NodeRoute
from tunnel_server.auth.users import User
from tunnel_server.listeners.addresses import CannotListen, is_loopback_listen
from tunnel_server.listeners.listener import AcceptedConnection

ENTRANCE = "tcp"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class TcpForward:
    """One local port. ``node`` is a name or alias. Without ``allow_from`` only loopback may connect."""

    listen: str
    node: str
    target: Target
    allow_from: tuple[Network, ...] = ()


class TcpEntrance:
    """Serve the connections of one forwarded port. Raises ``CannotListen`` as ``refuse_open_listen`` does."""

    def __init__(self, opener: Opener, forward: TcpForward) -> None:
        refuse_open_listen(forward)
        self._opener = opener
        self._forward = forward

    async def serve(self, accepted: AcceptedConnection) -> None:
        """Relay one connection to its end. Raises only ``Cancelled``."""
        try:
            request = self._request(accepted)
        except Refused as refused:
            self._opener.records.refused(ENTRANCE, accepted.source, refused)
            return
        accepted.ticket.authenticated()
        try:
            # The user's bytes follow the open at once, without waiting for the dial.
            async with self._opener.open(request) as user_stream:
                await user_stream.relay(accepted.stream)
        except NotOpened:
            return  # The refusal is recorded. The TCP client only sees the reset that follows.

    def _request(self, accepted: AcceptedConnection) -> StreamRequest:
        address = _address(accepted.address.rpartition(":")[0])
        if not is_allowed(address, self._forward.allow_from):
            raise Refused(
                Reason.SOURCE_NOT_ALLOWED,
                f"{address} may not use {self._forward.listen}; add it to allow_from of this [[tcp]] entry",
            )
        node = self._opener.nodes.name_of(self._forward.node) or self._forward.node
        user = User(str(address), Role.USER, self._opener.trust_domain)
        return StreamRequest(user, NodeRoute(node, self._forward.target), ENTRANCE, accepted.source)


@functools.lru_cache(1024)
def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(host.strip("[]").partition("%")[0])


def is_allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: Sequence[Network]) -> bool:
    """Whether ``address`` may connect: it is in one of ``networks``, or loopback if there are none."""
    if not networks:
        return address.is_loopback
    return any(address in network for network in networks)


def refuse_open_listen(forward: TcpForward) -> None:
    """Raise ``CannotListen`` for a port beyond loopback without ``allow_from``."""
    if not forward.allow_from and not is_loopback_listen(forward.listen):
        raise CannotListen(
            f"cannot listen on {forward.listen} for {forward.node}: beyond loopback a [[tcp]] entry needs "
            'allow_from, for example allow_from = ["10.0.0.0/8"], because nothing else limits who connects'
        )
