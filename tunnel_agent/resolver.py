"""Host names to addresses, by the system's resolver alone: hosts file, DNS and mDNS in its own order.

1. `check`, `join`, renewals and `run` look up a server or a proxy here, and dial what was found. gRPC
   gets addresses, because its own resolver asks DNS even for a name of ``/etc/hosts``, and waits for it.
2. Each attempt looks the name up anew, because a server may move.
3. A look-up blocks a thread, and glibc offers no way to end it. A cancelled one goes on to its end, up to
   half a minute with a silent DNS. Servers have threads of their own, so that look-ups of targets,
   which users cause, never take the last thread from the way to the server.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Awaitable, Callable, Sequence

import trio

_MAX_LOOKUPS = 16
"""Two attempts a second and a half apart, over the half minute for which a silent DNS holds a thread."""
_MAX_ADDRESSES = 8
"""Of one server or proxy. All share the time of one attempt."""

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""A host name to addresses, in the resolver's order. Raises ``OSError`` (``socket.gaierror``)."""

_threads: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("threads of server look-ups")


async def resolve_host(host: str) -> Sequence[str]:
    """Look up a target's host, in trio's bounded pool of threads. Cancellation abandons the thread."""
    found = await trio.socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def resolve_server(host: str) -> Sequence[str]:
    """Look up a server or a proxy: its addresses in the resolver's order, each once, 8 at most.

    Raises ``OSError``. Cancellation abandons the thread, which ends when the resolver gives up.
    """
    try:
        found = _look_up(host, socket.AI_NUMERICHOST)
    except socket.gaierror:  # it is a name
        look_up = functools.partial(_look_up, host, 0)
        found = await trio.to_thread.run_sync(look_up, abandon_on_cancel=True, limiter=_limiter())
    return list(dict.fromkeys(found))[:_MAX_ADDRESSES]


def _look_up(host: str, flags: int) -> list[str]:
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM, flags=flags)
    return [str(address[0]) for *_, address in found]


def _limiter() -> trio.CapacityLimiter:
    try:
        return _threads.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_MAX_LOOKUPS)
        _threads.set(limiter)
        return limiter
