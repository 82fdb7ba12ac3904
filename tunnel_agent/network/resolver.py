"""Resolve host names by the system's resolver alone: hosts file, DNS and mDNS in its order.

1. `check`, `join`, renewals and `run` look up a server or a proxy here and dial its addresses. gRPC gets
   addresses, because its own resolver waits for DNS even for a name in ``/etc/hosts``.
2. Each attempt looks up the name again, because a server may move.
3. A look-up blocks a thread, and glibc cannot end it. A cancelled look-up runs on for up to half a minute
   with a silent DNS. Servers and targets have separate threads, because users cause the look-ups of targets.
   So targets take no thread from the path to the server, or from the agent's files. ``targets/lookups.py``
   shares the threads of targets among the users.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import trio

from tunnel_core.kept_errors import without_frames

MAX_TARGET_LOOKUPS = 64
"""Names of targets that are looked up at once, a thread each."""
_MAX_LOOKUPS = 16
"""Names of servers and proxies that are looked up at once, a thread each: two attempts a second and a half
apart, over the half minute for which a silent DNS holds a thread."""
_MAX_ADDRESSES = 8
"""Addresses of one server or proxy. All share the time of one attempt."""

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Resolves a host name to addresses, in the resolver's order. Raises ``OSError`` (``socket.gaierror``)."""

_Threads: TypeAlias = trio.lowlevel.RunVar[trio.CapacityLimiter]
_of_servers: _Threads = trio.lowlevel.RunVar("threads of server look-ups")
_of_targets: _Threads = trio.lowlevel.RunVar("threads of target look-ups")


async def resolve_host(host: str) -> Sequence[str]:
    """Look up a target's host. Raises ``OSError``. Cancellation abandons the thread."""
    limiter = _limiter(_of_targets, MAX_TARGET_LOOKUPS)
    return await _look_up_in_thread(host, limiter)


async def resolve_server(host: str) -> Sequence[str]:
    """Return the addresses of a server or a proxy in the resolver's order, each once, 8 at most.

    Raises ``OSError``. Cancellation abandons the thread, which ends when the resolver gives up.
    """
    try:
        addresses = _look_up(host, socket.AI_NUMERICHOST)
    except socket.gaierror:  # the host is a name
        limiter = _limiter(_of_servers, _MAX_LOOKUPS)
        addresses = await _look_up_in_thread(host, limiter)
    return list(dict.fromkeys(addresses))[:_MAX_ADDRESSES]


def _look_up(host: str, flags: int) -> list[str]:
    entries = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM, flags=flags)
    return [str(address[0]) for *_, address in entries]


async def _look_up_in_thread(host: str, limiter: trio.CapacityLimiter) -> list[str]:
    result = await trio.to_thread.run_sync(_try_look_up, host, abandon_on_cancel=True, limiter=limiter)
    if isinstance(result, OSError):
        try:
            raise result
        finally:
            del result  # the traceback holds this frame
    return result


def _try_look_up(host: str) -> list[str] | OSError:
    """Return the addresses or the error: an error raised in a thread forms a cycle with trio's frame."""
    try:
        return _look_up(host, 0)
    except OSError as error:
        return without_frames(error)


def _limiter(threads: _Threads, most: int) -> trio.CapacityLimiter:
    try:
        return threads.get()
    except LookupError:
        limiter = trio.CapacityLimiter(most)
        threads.set(limiter)
        return limiter
