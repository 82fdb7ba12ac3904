"""Connect to the first of several addresses that answers, as in RFC 8305 ("happy eyeballs").

The next attempt starts when one failed or 250 ms passed. The first connection wins and the others are closed.
The error number of a failed connection determines its ``Reason``; its text does not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import trio

from tunnel_core.kept_errors import without_frames
from tunnel_core.names import join_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.sockets import SocketStream, tune

_STAGGER_SECONDS = 0.25


class Connected(NamedTuple):
    """An open connection and its address as ``host:port``."""

    stream: SocketStream
    address: str


Connect = Callable[[str, int], Awaitable[SocketStream]]
"""Connects to one address and port. Raises ``OSError``. Cancelled, it leaves no socket."""


async def connect_address(address: str, port: int) -> SocketStream:
    """Connect over TCP to one address, which may have a zone (``fe80::1%eth0``).

    Raises ``OSError``. Cancelled, it leaves no socket.
    """
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
    """Connect to an address of this machine, which the kernel does at once; None if that fails."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), contextlib.ExitStack() as on_failure:
        sock, number = _begin_connect(family, (address, port))
        on_failure.callback(sock.close)
        if not number:
            tune(sock, is_remote=False)
            stream = SocketStream(sock, is_tuned=True)
            on_failure.pop_all()
            return stream
    return None


def _begin_connect(
    family: int, address: tuple[str, int] | tuple[str, int, int, int]
) -> tuple[socket.socket, int]:
    """Start a connect; return the socket and 0 (connected), ``EALREADY`` (in progress) or an error number."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    number = sock.connect_ex(address)
    if number == errno.EINPROGRESS:
        number = sock.connect_ex(address)  # a connect within this machine is complete by now
    return sock, number


async def connect_first(addresses: Sequence[str], port: int, connect: Connect = connect_address) -> Connected:
    """Return the connection to the first of ``addresses`` that answers on ``port``.

    Raises the ``OSError`` of the first failure if all fail. Cancelled, it leaves no connection.
    """
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
        raise race.errors.pop(0)  # an error left in the list would form a cycle with this frame
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
            self.errors.append(without_frames(error))
            failed.set()
            return
        self._finish(Connected(stream, join_host_port(address, self._port)), scope)

    def _finish(self, connected: Connected, scope: trio.CancelScope) -> None:
        if self.winner is None:
            self.winner = connected
        else:  # two attempts connected in the same pass of the event loop
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
    """Return the refusal for a failed dial of ``where``, chosen by its error number."""
    number = error.errno or 0
    text = os.strerror(number) if number > 0 else "unknown error"
    if number in _UNREACHABLE:
        return Refused(Reason.DIAL_UNREACHABLE, f"node {node}: {where} cannot be reached ({text})")
    reason, cause = _BY_ERRNO.get(number, (Reason.DIAL_FAILED, f"could not be dialled ({text})"))
    return Refused(reason, f"node {node}: {where} {cause}")
