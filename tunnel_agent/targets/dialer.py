"""Dial the targets that the policy allows: resolve the name, check the addresses, dial only those.

Every error becomes a ``Refused`` by its number, never by its text. The sentence names the node, the target
and the cause.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import trio

from tunnel_agent.network.happy_eyeballs import (
    Connect,
    Connected,
    connect_address,
    connect_first,
    connect_nowait,
    refused_by_errno,
)
from tunnel_agent.network.resolver import Resolve, resolve_host
from tunnel_agent.targets.lookups import TargetLookups
from tunnel_agent.targets.policy import Destination, Policy, addresses_without_resolver, is_own_address
from tunnel_agent.targets.tls import TargetTls
from tunnel_core.names import Target, join_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.sockets import SocketStream, connect_unix
from tunnel_core.streams.tls import SocketTlsStream

_MAX_ADDRESSES = 16
"""Limit of the addresses that are tried for a name. More belong to an attack or a content network."""


class Dialled(NamedTuple):
    """An open connection to a target."""

    stream: SocketStream | SocketTlsStream
    address: str
    """The resolved address: ``1.2.3.4:80``, ``[::1]:80`` or ``unix:/path``."""


@dataclass(frozen=True, slots=True)
class Dialler:
    """Dials the targets of one node. Tests replace ``resolve`` and ``connect``."""

    policy: Policy
    timeout_seconds: float
    tls: TargetTls
    resolve: Resolve = resolve_host
    connect: Connect = connect_address
    lookups: TargetLookups | None = None
    """Shares the look-ups among users; without it each dial looks up by itself."""

    def dial_nowait(self, target: Target, *, tls: bool = False) -> Dialled | None:
        """Connect to a target inside this machine at once; return None if the target needs ``dial``.

        Raises ``Refused`` for a target that the policy does not allow.
        """
        destination = self.policy.find(target)
        host = destination.target.host
        if (tls and destination.is_https) or not is_own_address(host):
            return None
        address = self.policy.pick(destination, addresses_without_resolver(host))[0]
        stream = connect_nowait(address, destination.target.port)
        return Dialled(stream, join_host_port(address, destination.target.port)) if stream else None

    async def dial(self, target: Target, *, tls: bool = False, user: str = "") -> Dialled:
        """Connect to ``target`` for ``user`` within ``timeout_seconds``; ``tls``: TLS to an https service.

        Raises ``Refused``. Cancelled, it leaves no socket behind.
        """
        destination = self.policy.find(target)
        deadline = trio.current_time() + self.timeout_seconds
        addresses = await self._addresses(destination, deadline, user)
        where = str(destination.target)
        try:
            with trio.fail_at(deadline):
                connected = await self._connect(destination, addresses)
                return await self._add_tls(connected, destination if tls else None)
        except trio.TooSlowError:
            sentence = f"node {self.policy.node}: {where} did not answer within {self.timeout_seconds:g} s"
            raise Refused(Reason.DIAL_TIMEOUT, sentence) from None
        except OSError as error:
            raise refused_by_errno(self.policy.node, where, error) from error

    async def _addresses(self, destination: Destination, deadline: float, user: str) -> Sequence[str]:
        host = destination.target.host
        if not host:
            return []
        addresses = addresses_without_resolver(host) or await self._resolve(host, deadline, user)
        return self.policy.pick(destination, addresses)[:_MAX_ADDRESSES]

    async def _resolve(self, host: str, deadline: float, user: str) -> Sequence[str]:
        try:
            with trio.fail_at(deadline):
                addresses = await self._look_up(host, user)
        except trio.TooSlowError:
            cause = f"its resolver did not answer in {self.timeout_seconds:g} s"
            if self.lookups is not None and (others := self.lookups.why_waiting(host, user)):
                cause = f"{cause}; {others}"
            raise self._unresolved(host, cause) from None
        except socket.gaierror as error:
            raise self._unresolved(host, error.strerror or "the resolver failed") from error
        except OSError as error:
            raise refused_by_errno(self.policy.node, host, error) from error
        if not addresses:
            raise self._unresolved(host, "the name has no address")
        return addresses

    async def _look_up(self, host: str, user: str) -> Sequence[str]:
        if self.lookups is None:
            return await self.resolve(host)
        return await self.lookups.resolve(host, user)

    async def _connect(self, destination: Destination, addresses: Sequence[str]) -> Connected:
        target = destination.target
        if target.unix_path:
            return Connected(await connect_unix(target.unix_path.encode()), str(target))
        return await connect_first(addresses, target.port, self.connect)

    async def _add_tls(self, connected: Connected, destination: Destination | None) -> Dialled:
        if destination is None or destination.service is None or not destination.is_https:
            return Dialled(*connected)
        return Dialled(await self.tls.wrap(connected.stream, destination.service), connected.address)

    def _unresolved(self, host: str, cause: str) -> Refused:
        return Refused(Reason.NAME_NOT_RESOLVED, f"node {self.policy.node} cannot resolve {host}: {cause}")
