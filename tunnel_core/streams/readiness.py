"""Call a function whenever a socket is readable, without a task that waits.

trio registers a descriptor with epoll again for each wait, and then switches to the task that waited. For
small messages that is a seventh of the CPU of a busy server. Here one system task for each ``trio.run`` waits
for an epoll descriptor of its own, and the sockets behind it stay registered. The registration is
level-triggered, so a function may leave bytes in the socket: it is called again in trio's next pass.
"""

from __future__ import annotations

import select
from collections.abc import Callable

import trio

_CALLS_AT_ONCE = 64
"""Functions that are called between two checkpoints. Each moves one small read: together about 2 ms."""

IS_SUPPORTED = hasattr(select, "epoll")
"""Whether this system has epoll; clients also run on systems without it."""


class _Readiness:
    """The watched descriptors of one ``trio.run``."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._functions: dict[int, Callable[[], None]] = {}

    def watch(self, descriptor: int, function: Callable[[], None]) -> None:
        self._epoll.register(descriptor, select.EPOLLIN)
        self._functions[descriptor] = function

    def unwatch(self, descriptor: int) -> None:
        if self._functions.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    async def run(self) -> None:
        functions = self._functions
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for descriptor, _ in self._epoll.poll(0, _CALLS_AT_ONCE):
                    # An earlier function of this pass may have ended the watch.
                    function = functions.get(descriptor)
                    if function is not None:
                        function()
        finally:
            self._epoll.close()


_readiness: trio.lowlevel.RunVar[_Readiness] = trio.lowlevel.RunVar("qanat_readiness")


def watch(descriptor: int, function: Callable[[], None]) -> None:
    """Call ``function`` while ``descriptor`` is readable, at its end, and when it broke; also without cause.

    ``function`` must not block or raise. Call :func:`unwatch` before the descriptor is closed.
    """
    try:
        readiness = _readiness.get()
    except LookupError:
        readiness = _Readiness()
        _readiness.set(readiness)
        trio.lowlevel.spawn_system_task(readiness.run)
    readiness.watch(descriptor, function)


def unwatch(descriptor: int) -> None:
    """Call the function of ``descriptor`` no more. Idempotent."""
    _readiness.get().unwatch(descriptor)
