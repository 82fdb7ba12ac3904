"""Dials what the policy allows: resolve here, check what came back, dial exactly what was checked.

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
"""Of one name, as many are tried; a name with more is an attack or a content network."""


class Dialled(NamedTuple):
    stream: SocketStream | SocketTlsStream
    address: str
    """``1.2.3.4:80``, ``[::1]:80`` or ``unix:/path``: what was connected, after resolution."""


@dataclass(frozen=True, slots=True)
class Dialler:
    """Dials for one node. ``resolve`` and ``connect`` are the seams of the tests."""

    policy: Policy
    timeout_seconds: float
    tls: TargetTls
    resolve: Resolve = resolve_host
    connect: Connect = connect_address
    lookups: TargetLookups | None = None
    """Shares the look-ups among users; without it each dial looks up by itself."""

    def dial_nowait(self, target: Target, *, tls: bool = False) -> Dialled | None:
        """A connection that needs no waiting and no deadline: one inside this machine. None: ``dial``.

        Raises ``Refused`` for what the policy does not allow.
        """
        destination = self.policy.find(target)
        host = destination.target.host
        if (tls and destination.is_https) or not is_own_address(host):
            return None
        address = self.policy.pick(destination, addresses_without_resolver(host))[0]
        stream = connect_nowait(address, destination.target.port)
        return Dialled(stream, join_host_port(address, destination.target.port)) if stream else None

    async def dial(self, target: Target, *, tls: bool = False, user: str = "") -> Dialled:
        """A connection for ``user`` to ``target``, with ``tls`` inside TLS if it is a service that speaks it.

        Raises ``Refused``; cancelled, it leaves no socket behind.
        """
        destination = self.policy.find(target)
        deadline = trio.current_time() + self.timeout_seconds
        addresses = await self._addresses(destination, deadline, user)
        where = str(destination.target)
        try:
            with trio.fail_at(deadline):
                connected = await self._connected(destination, addresses)
                return await self._finish(connected, destination if tls else None)
        except trio.TooSlowError:
            sentence = f"node {self.policy.node}: {where} did not answer within {self.timeout_seconds:g} s"
            raise Refused(Reason.DIAL_TIMEOUT, sentence) from None
        except OSError as error:
            raise refused_by_errno(self.policy.node, where, error) from error

    async def _addresses(self, destination: Destination, deadline: float, user: str) -> Sequence[str]:
        host = destination.target.host
        if not host:
            return []
        found = addresses_without_resolver(host) or await self._resolved(host, deadline, user)
        return self.policy.pick(destination, found)[:_MAX_ADDRESSES]

    async def _resolved(self, host: str, deadline: float, user: str) -> Sequence[str]:
        try:
            with trio.fail_at(deadline):
                found = await self._look_up(host, user)
        except trio.TooSlowError:
            cause = f"its resolver did not answer in {self.timeout_seconds:g} s"
            if self.lookups is not None and (others := self.lookups.why_waiting(host, user)):
                cause = f"{cause}; {others}"
            raise self._unresolved(host, cause) from None
        except socket.gaierror as error:
            raise self._unresolved(host, error.strerror or "the resolver failed") from error
        except OSError as error:
            raise refused_by_errno(self.policy.node, host, error) from error
        if not found:
            raise self._unresolved(host, "the name has no address")
        return found

    async def _look_up(self, host: str, user: str) -> Sequence[str]:
        if self.lookups is None:
            return await self.resolve(host)
        return await self.lookups.resolve(host, user)

    async def _connected(self, destination: Destination, addresses: Sequence[str]) -> Connected:
        target = destination.target
        if target.unix_path:
            return Connected(await connect_unix(target.unix_path.encode()), str(target))
        return await connect_first(addresses, target.port, self.connect)

    async def _finish(self, connected: Connected, destination: Destination | None) -> Dialled:
        if destination is None or destination.service is None or not destination.is_https:
            return Dialled(*connected)
        return Dialled(await self.tls.wrap(connected.stream, destination.service), connected.address)

    def _unresolved(self, host: str, cause: str) -> Refused:
        return Refused(Reason.NAME_NOT_RESOLVED, f"node {self.policy.node} cannot resolve {host}: {cause}")
