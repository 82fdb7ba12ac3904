"""Report a changed route to the server as soon as the kernel knows it, long before a ping fails.

1. One netlink socket receives a message for each change of links, addresses, routes or rules. The watcher
   does not read its content, because a cluster's node gets hundreds of messages an hour for pods. So an
   overrun (ENOBUFS) loses nothing: it only announces again that something changed.
2. The watcher waits for the end of a burst. Then a second socket asks the kernel for the route to each
   address of the server. The kernel answers within the call, which takes some 30 us. ``RouteChange`` decides
   whether the answers are a change.
3. There are two sockets, because a full queue of announcements must not drop an answer.
4. Without netlink (another system, a sandbox) the watcher ends, and only pings find a dead path.

Not covered: another access point under the same interface, address and gateway, because the kernel's route
stays the same. A new temporary IPv6 address (about daily) counts as a change.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterable, Iterator

import trio

from tunnel_agent.network.netlink import GROUPS, KernelRoute, read_answers, route_request
from tunnel_agent.network.route_change import RouteChange

_log = logging.getLogger("qanat.route")

LEAST_SECONDS = 5.0
"""Time between two changes of the route that are reported, because they come in groups."""
_BURST_SECONDS = 0.03
_MAX_ANSWER_BYTES = 16 * 1024
_MAX_DRAINED = 10_000
_MAX_SEQUENCE = 0xFFFFFFFF


class RouteWatcher:
    """Calls ``on_change`` when the route to one of the addresses given to ``watch`` changed."""

    def __init__(self, on_change: Callable[[], None], *, least_seconds: float = LEAST_SECONDS) -> None:
        self._on_change = on_change
        self._change = RouteChange(least_seconds)
        self._requests: socket.socket | None = None
        self._sequence = 0

    def watch(self, addresses: Iterable[str]) -> None:
        """Watch the routes to these IP addresses of the server; skip texts that are not addresses."""
        self._change.watch(address for address in addresses if _is_address(address))
        with contextlib.suppress(OSError):  # ``run`` meets the same error and logs it
            self._ask()

    async def run(self) -> None:
        """Watch until cancelled. Return at once if netlink is not available."""
        try:
            with _open_netlink(GROUPS) as events, _open_netlink(0) as self._requests:
                await self._watch(events)
        except OSError as error:
            _log.debug("the route to the server is not watched: %s", error.strerror)
        finally:
            self._requests = None

    async def _watch(self, events: socket.socket) -> None:
        self._ask()
        while True:
            await self._wait_for_change(events)
            self._ask()
            if self._change.take_change(trio.current_time()):
                _log.info("the route to the server changed")
                self._on_change()

    async def _wait_for_change(self, events: socket.socket) -> None:
        with trio.CancelScope(deadline=self._change.due_at(trio.current_time())):
            await trio.lowlevel.wait_readable(events)
            await trio.sleep(_BURST_SECONDS)
        _drain(events)

    def _ask(self) -> None:
        if self._requests is not None:
            self._change.answered(dict(self._answers(self._requests)))

    def _answers(self, requests: socket.socket) -> Iterator[tuple[str, KernelRoute | None]]:
        for address in self._change.addresses:
            self._sequence = self._sequence % _MAX_SEQUENCE + 1
            requests.send(route_request(address, self._sequence))
            for answer in read_answers(_receive(requests)):
                if answer.sequence == self._sequence:
                    yield address, answer.route


def _is_address(text: str) -> bool:
    try:
        route_request(text, 0)
    except ValueError:
        return False
    return True


def _open_netlink(groups: int) -> socket.socket:
    """Open a non-blocking socket. Raises ``OSError`` if netlink is missing or forbidden."""
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        raise OSError(errno.EAFNOSUPPORT, "this system has no netlink")
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        sock.setblocking(False)
        sock.bind((0, groups))
    except OSError:
        sock.close()
        raise
    return sock


def _receive(requests: socket.socket) -> bytes:
    """Return the kernel's answers; empty if there are none, and then the next change asks again."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            data += requests.recv(_MAX_ANSWER_BYTES)
    return data


def _drain(events: socket.socket) -> None:
    for _ in range(_MAX_DRAINED):
        try:
            events.recv(1)  # the kernel drops the rest of the datagram
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
