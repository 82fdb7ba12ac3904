"""Look up the names of targets with a fair share for each user, so that silent DNS blocks one user at most.

1. A look-up holds a thread until the system's resolver gives up, half a minute with a silent DNS, whether or
   not its user still waits. So a look-up counts against its user until it ends.
2. A user may run an eighth of the free look-ups, and one as long as any is free. Further look-ups wait
   for an earlier one of the same user, and their dial ends by its own deadline.
3. Streams that need the same name at the same time share one look-up.
4. A failure is cached for five seconds. A success is not cached, because addresses change.
"""

from __future__ import annotations

import logging
import socket
from collections import OrderedDict
from collections.abc import Sequence

import trio

from tunnel_agent.network.resolver import MAX_TARGET_LOOKUPS, Resolve, resolve_host
from tunnel_core.humanize import counted
from tunnel_core.kept_errors import without_frames
from tunnel_core.tally import Tally

_log = logging.getLogger("qanat.streams")

_SHARE = 8
"""Part of the free look-ups that one user may have. A look-up counts until the resolver gives up."""
FAILURE_SECONDS = 5.0
"""Time for which a failed look-up of a target is remembered. Each costs a thread for up to half a minute."""
_MAX_FAILURES = 1024
"""Failed look-ups that are remembered."""
_LASTING = {socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_AGAIN, socket.EAI_FAIL}
"""Errors of the name, which are cached. Others, such as no memory or no descriptors, are errors of this
machine."""


class _LookUp:
    """One look-up, which several streams may wait for."""

    def __init__(self, host: str, user: str) -> None:
        self.host = host
        self.user = user
        self.done = trio.Event()
        self.addresses: Sequence[str] = ()
        self.error: OSError | None = None


class TargetLookups:
    """Look-ups of one agent, ``most`` at once. Each is a task of ``nursery``: it may outlive its dial."""

    def __init__(
        self, nursery: trio.Nursery, resolve: Resolve = resolve_host, *, most: int = MAX_TARGET_LOOKUPS
    ) -> None:
        self._nursery = nursery
        self._resolve = resolve
        self._most = most
        self._running: dict[str, _LookUp] = {}
        self._of_user: Tally[str] = Tally()
        self._waiting: dict[str, trio.lowlevel.ParkingLot] = {}
        self._failed: OrderedDict[str, tuple[float, OSError]] = OrderedDict()

    async def resolve(self, host: str, user: str) -> Sequence[str]:
        """Return the addresses of ``host``. Raises ``OSError``; cancelled, it leaves the look-up running."""
        look_up = await self._find(host, user)
        await look_up.done.wait()
        if look_up.error is not None:
            raise _copy_of(look_up.error)
        return look_up.addresses

    def why_waiting(self, host: str, user: str) -> str:
        """Return why the look-up of ``host`` did not begin, or nothing if it did."""
        if host in self._running or self._may_start(user):
            return ""
        if not self._of_user[user]:
            return f"all {self._most} look-ups of this agent are in use by other users"
        own = counted(self._of_user[user], "earlier look-up")
        return f"the resolver has not answered {own} of {user or 'this user'} yet"

    async def _find(self, host: str, user: str) -> _LookUp:
        """Return the running look-up of ``host``, or start one. Raises the cached failure."""
        while True:
            if (error := self._failure(host)) is not None:
                raise error
            if host in self._running:
                return self._running[host]
            if self._may_start(user):
                return self._start(host, user)
            await self._waiting.setdefault(user, trio.lowlevel.ParkingLot()).park()
            if host in self._running or self._failure(host) is not None:
                self._wake_waiting()  # this waiter starts no look-up, so another may

    def _may_start(self, user: str) -> bool:
        free = self._most - len(self._running)
        return free > 0 and self._of_user[user] < max(1, free // _SHARE)

    def _start(self, host: str, user: str) -> _LookUp:
        look_up = self._running[host] = _LookUp(host, user)
        self._of_user[user] += 1
        self._nursery.start_soon(self._run, look_up)
        return look_up

    async def _run(self, look_up: _LookUp) -> None:
        try:
            look_up.addresses = await self._resolve(look_up.host)
        except OSError as error:
            look_up.error = without_frames(error)
            self._remember(look_up.host, error)
        except Exception as error:
            _log.exception("the look-up of %s failed", look_up.host)
            look_up.error = OSError(str(error))
        finally:
            self._end(look_up)

    def _end(self, look_up: _LookUp) -> None:
        del self._running[look_up.host]
        self._of_user.take(look_up.user)
        look_up.done.set()
        self._wake_waiting()

    def _wake_waiting(self) -> None:
        """Wake one waiter of each user that may start a look-up. A waiter that starts none wakes the next."""
        for user, lot in list(self._waiting.items()):
            if not lot:
                del self._waiting[user]
            elif self._may_start(user):
                lot.unpark()

    def _remember(self, host: str, error: OSError) -> None:
        if isinstance(error, socket.gaierror) and error.errno in _LASTING:
            self._failed[host] = (trio.current_time() + FAILURE_SECONDS, error)
            self._failed.move_to_end(host)
            if len(self._failed) > _MAX_FAILURES:
                self._failed.popitem(last=False)

    def _failure(self, host: str) -> OSError | None:
        """Return the cached failure of ``host``."""
        until, error = self._failed.get(host, (0.0, None))
        if error is None or trio.current_time() < until:
            return None if error is None else _copy_of(error)
        del self._failed[host]
        return None


def _copy_of(error: OSError) -> OSError:
    """Return a copy for one of several waiters, because a traceback grows with each raise."""
    return type(error)(*error.args)
