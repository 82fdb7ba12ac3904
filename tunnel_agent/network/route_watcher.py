"""Hears from the kernel when the way to the server changed, long before a ping would tell.

1. One netlink socket hears that anything changed in links, addresses, routes or rules. What it was
   does not matter and is not read: a cluster's node has hundreds of such messages an hour, for pods.
   So an overrun (ENOBUFS) loses nothing: it is one more sign that something changed.
2. A burst is waited for, then a second socket asks the kernel for the way to each address of the
   server. The kernel answers within the call, so nothing waits here; a question takes some 30 us.
   ``route_change`` says whether the answers are news.
3. Two sockets, because an answer must not drown in a full queue of announcements.
4. Without netlink (another system, a sandbox) nobody watches, and pings find out as they always do.

Not covered: an access point changed under the same interface, address and gateway. Nothing that the
kernel knows about the way is different then. A new temporary IPv6 address (about daily) counts as a change.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterable, Iterator

import trio

from tunnel_agent.network.netlink import GROUPS, KernelRoute, read_answers, route_question
from tunnel_agent.network.route_change import RouteChange

_log = logging.getLogger("qanat.route")

LEAST_SECONDS = 5.0
"""Time between two changes of the route that are reported, because they come in groups."""
_BURST_SECONDS = 0.03
_MAX_ANSWER_BYTES = 16 * 1024
_MAX_DRAINED = 10_000
_MAX_SEQUENCE = 0xFFFFFFFF


class RouteWatcher:
    """Calls ``on_change`` when the way to one of the addresses given to ``watch`` changed."""

    def __init__(self, on_change: Callable[[], None], *, least_seconds: float = LEAST_SECONDS) -> None:
        self._on_change = on_change
        self._change = RouteChange(least_seconds)
        self._questions: socket.socket | None = None
        self._sequence = 0

    def watch(self, addresses: Iterable[str]) -> None:
        """From here on the server is at these IP addresses; what is none is left out."""
        self._change.watch(address for address in addresses if _is_address(address))
        with contextlib.suppress(OSError):  # ``run`` meets it too, and says so
            self._ask()

    async def run(self) -> None:
        """Watches until cancelled; returns at once where that cannot be done."""
        try:
            with _open_netlink(GROUPS) as events, _open_netlink(0) as self._questions:
                await self._watch(events)
        except OSError as error:
            _log.debug("the way to the server is not watched: %s", error.strerror)
        finally:
            self._questions = None

    async def _watch(self, events: socket.socket) -> None:
        self._ask()
        while True:
            await self._wait_news(events)
            self._ask()
            if self._change.tell(trio.current_time()):
                _log.info("the way to the server changed")
                self._on_change()

    async def _wait_news(self, events: socket.socket) -> None:
        with trio.CancelScope(deadline=self._change.due_at(trio.current_time())):
            await trio.lowlevel.wait_readable(events)
            await trio.sleep(_BURST_SECONDS)
        _drain(events)

    def _ask(self) -> None:
        if self._questions is not None:
            self._change.answered(dict(self._answers(self._questions)))

    def _answers(self, questions: socket.socket) -> Iterator[tuple[str, KernelRoute | None]]:
        for address in self._change.addresses:
            self._sequence = self._sequence % _MAX_SEQUENCE + 1
            questions.send(route_question(address, self._sequence))
            for answer in read_answers(_receive(questions)):
                if answer.sequence == self._sequence:
                    yield address, answer.route


def _is_address(text: str) -> bool:
    try:
        route_question(text, 0)
    except ValueError:
        return False
    return True


def _open_netlink(groups: int) -> socket.socket:
    """A socket that does not block. Raises ``OSError`` where there is no netlink, or it is forbidden."""
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


def _receive(questions: socket.socket) -> bytes:
    """Everything that was said; empty if nothing was, and then the next change asks again."""
    said = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            said += questions.recv(_MAX_ANSWER_BYTES)
    return said


def _drain(events: socket.socket) -> None:
    for _ in range(_MAX_DRAINED):
        try:
            events.recv(1)  # the rest of the datagram goes with it
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
