"""Dials what the policy allows: resolve here, check what came back, dial exactly what was checked.

Addresses are raced as in RFC 8305: the next attempt starts when one failed or 250 ms passed, the
first connection wins and the others are closed. Every error becomes a ``Refused`` by its number,
never by its text; the sentence names the node, the target and the cause.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import trio

from tunnel_agent.resolver import Resolve, resolve_host
from tunnel_agent.target_lookups import TargetLookups
from tunnel_agent.targets import Destination, Policy, addresses_without_resolver, is_own_address
from tunnel_agent.tls import TargetTls
from tunnel_core.names import Target, join_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.sockets import SocketStream, connect_unix, tune
from tunnel_core.tls import SocketTlsStream

_STAGGER_SECONDS = 0.25
_MAX_ADDRESSES = 16
"""Of one name, as many are tried; a name with more is an attack or a content network."""


class Connected(NamedTuple):
    stream: SocketStream
    address: str


class Dialled(NamedTuple):
    stream: SocketStream | SocketTlsStream
    address: str
    """``1.2.3.4:80``, ``[::1]:80`` or ``unix:/path``: what was connected, after resolution."""


Connect = Callable[[str, int], Awaitable[SocketStream]]
"""Connects to one address. Raises ``OSError``; a cancelled one leaves no socket."""


async def connect_address(address: str, port: int) -> SocketStream:
    """Connects over TCP to one address, with a zone (``fe80::1%eth0``) if it has one."""
    plain, _, zone = address.partition("%")
    if ":" not in address:
        return await _connect(socket.AF_INET, (address, port))
    return await _connect(socket.AF_INET6, (plain, port, 0, socket.if_nametoindex(zone) if zone else 0))


async def _connect(family: int, address: tuple[str, int] | tuple[str, int, int, int]) -> SocketStream:
    sock, number = _begin_connect(family, address)
    try:
        if number == errno.EALREADY:
            await trio.lowlevel.wait_writable(sock)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
        return SocketStream(sock)
    except BaseException:
        sock.close()
        raise


def connect_nowait(address: str, port: int) -> SocketStream | None:
    """A connection to an address of this machine, which its kernel makes at once; else None."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), contextlib.ExitStack() as on_failure:
        sock, number = _begin_connect(family, (address, port))
        on_failure.callback(sock.close)
        if not number:
            tune(sock, leads_away=False)
            stream = SocketStream(sock, is_tuned=True)
            on_failure.pop_all()
            return stream
    return None


def _begin_connect(
    family: int, address: tuple[str, int] | tuple[str, int, int, int]
) -> tuple[socket.socket, int]:
    """A socket and how its connect stands: 0 connected, ``EALREADY`` on its way, or what it failed with."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    number = sock.connect_ex(address)
    if number == errno.EINPROGRESS:
        number = sock.connect_ex(address)  # on this machine it is done by now
    return sock, number


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


async def connect_first(addresses: Sequence[str], port: int, connect: Connect = connect_address) -> Connected:
    """The first of ``addresses`` to connect. Raises the first failure's ``OSError`` when all fail."""
    if len(addresses) == 1:
        return Connected(await connect(addresses[0], port), join_host_port(addresses[0], port))
    race = _Race(connect, port)
    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(race.attempt, address, failed, nursery.cancel_scope)
                with trio.move_on_after(_STAGGER_SECONDS):
                    await failed.wait()
    except BaseException:
        if race.winner is not None:
            race.winner.stream.abort()
        raise
    if race.winner is None:
        raise race.errors.pop(0)  # kept there, with this frame in its traceback, it would be a cycle
    return race.winner


class _Race:
    def __init__(self, connect: Connect, port: int) -> None:
        self._connect = connect
        self._port = port
        self.winner: Connected | None = None
        self.errors: list[OSError] = []

    async def attempt(self, address: str, failed: trio.Event, scope: trio.CancelScope) -> None:
        try:
            stream = await self._connect(address, self._port)
        except OSError as error:
            self.errors.append(error.with_traceback(None))
            failed.set()
            return
        self._arrived(Connected(stream, join_host_port(address, self._port)), scope)

    def _arrived(self, connected: Connected, scope: trio.CancelScope) -> None:
        if self.winner is None:
            self.winner = connected
        else:  # two connected in the same pass
            connected.stream.abort()
        scope.cancel()


_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}
_BY_ERRNO = {
    errno.ECONNREFUSED: (Reason.DIAL_REFUSED, "refused the connection; is it running?"),
    errno.ENOENT: (Reason.DIAL_FAILED, "does not exist"),
    errno.EACCES: (Reason.DIAL_FAILED, "may not be dialled by the agent's user (permission denied)"),
    errno.ETIMEDOUT: (Reason.DIAL_TIMEOUT, "did not answer"),
    errno.EMFILE: (Reason.NO_DESCRIPTORS, "was not dialled: the agent has no file descriptors left"),
    errno.ENFILE: (Reason.NO_DESCRIPTORS, "was not dialled: the machine has no file descriptors left"),
}


def refused_by_errno(node: str, where: str, error: OSError) -> Refused:
    """What a failed dial of ``where`` is called, by its error number."""
    number = error.errno or 0
    text = os.strerror(number) if number > 0 else "unknown error"
    if number in _UNREACHABLE:
        return Refused(Reason.DIAL_UNREACHABLE, f"node {node}: {where} cannot be reached ({text})")
    reason, cause = _BY_ERRNO.get(number, (Reason.DIAL_FAILED, f"could not be dialled ({text})"))
    return Refused(reason, f"node {node}: {where} {cause}")
