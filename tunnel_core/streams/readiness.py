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


class Readiness:
    """The watched descriptors of one ``trio.run``. Made by :func:`readiness_of_this_run`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._functions: dict[int, Callable[[], None]] = {}

    def watch(self, descriptor: int, function: Callable[[], None]) -> None:
        """Call ``function`` while the descriptor is readable, also at its end and when it broke.

        It may be called without cause, and must not block or raise. Call ``unwatch`` before the descriptor is
        closed.
        """
        self._epoll.register(descriptor, select.EPOLLIN)
        self._functions[descriptor] = function

    def unwatch(self, descriptor: int) -> None:
        """Call the function of ``descriptor`` no more. Idempotent."""
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


_of_this_run: trio.lowlevel.RunVar[Readiness] = trio.lowlevel.RunVar("qanat_readiness")


def readiness_of_this_run() -> Readiness:
    """Return the watched descriptors of the present ``trio.run``."""
    try:
        return _of_this_run.get()
    except LookupError:
        readiness = Readiness()
        _of_this_run.set(readiness)
        trio.lowlevel.spawn_system_task(readiness.run)
        return readiness
