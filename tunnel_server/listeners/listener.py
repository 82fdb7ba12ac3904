"""Accept loops: every connection gets its own task, a place in the count, and an end.

1. The accept loop does nothing but accept; handshakes and heads happen in the connection's own task,
   each with a deadline, so nobody holds up anybody.
2. A connection is counted before its first byte is read (``admission``). One that is over the count of its
   source waits for its turn, unread, for a few seconds. One too many is refused, in the words of its
   protocol where that has any (``declining``).
3. Without descriptors ``accept`` fails at once, for ever, while the connection stays in the queue: the
   loop says so once a second, pauses and goes on when some are free.
4. ``stop_accepting`` ends the loops and leaves running connections alone; ``serve`` returns when the
   last one is gone. Cancelling ``serve`` aborts them.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import trio

from tunnel_core.http.declining import Decline, Decliner
from tunnel_core.names import join_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.sockets import SocketStream, tune
from tunnel_server.listeners.addresses import UnixAddress, address_of, bind_tcp, bind_unix, unlink_own
from tunnel_server.listeners.admission import Admission, Ticket

_ACCEPTS_AT_ONCE = 16
"""Each takes a tenth of a millisecond, and others wait meanwhile."""
_PAUSE_SECONDS = 0.1
_SAY_AGAIN_SECONDS = 1.0
TURN_SECONDS = 5.0
"""Time for which a connection waits for its turn: half of what clients wait for a handshake."""
_ROOM_SECONDS = 0.1
"""How often room is made while a connection waits."""
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED

_log = logging.getLogger("qanat.listeners")


class Reporter(Protocol):
    """Hears of refusals before authentication; bounds and counts what it writes."""

    def refused(self, entrance: str, source: str, refused: Refused) -> None: ...


@dataclass(frozen=True, slots=True)
class AcceptedConnection:
    """A connection that was admitted. ``address`` is ``host:port``; for a unix socket it is empty."""

    stream: trio.abc.HalfCloseableStream
    address: str
    ticket: Ticket
    uid: int | None = None
    """Of the process at the other end of a unix socket."""
    turns: trio.Lock | None = None
    """Taken by whoever computes for a connection of this listener that carries nothing yet."""

    @property
    def source(self) -> str:
        """Who is there, for the log."""
        return self.address or f"uid {self.uid}"


Handler: TypeAlias = Callable[[AcceptedConnection], Awaitable[None]]


class Listener:
    """Listening sockets of one entrance, with one count of connections over all of them."""

    def __init__(
        self,
        entrance: str,
        sockets: Sequence[socket.socket],
        admission: Admission,
        reporter: Reporter,
        decline: Decline | None = None,
    ) -> None:
        """``decline`` answers a refused connection; without it such a connection is reset."""
        self.entrance = entrance
        self.addresses = [
            bound.getsockname() if bound.family == socket.AF_UNIX else address_of(bound) for bound in sockets
        ]
        """Where it listens, or did: ``host:port`` each, or the path of a unix socket."""
        self._sockets = sockets
        for bound in sockets:
            tune(bound)
        self._admission = admission
        self._reporter = reporter
        self._decliner = Decliner(decline)
        self._accepting = trio.CancelScope()
        self._unlink: Callable[[], None] = lambda: None
        self._said_at = -float("inf")
        self._exhausted = False
        self._makes_room = False

    async def serve(
        self, handler: Handler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Accepts until ``stop_accepting`` and returns when the last connection has ended."""
        try:
            async with trio.open_nursery() as connections:
                task_status.started()
                with self._accepting:
                    await self._accept_all(handler, connections)
        finally:
            self.stop_accepting()

    def stop_accepting(self) -> None:
        """Closes the listening sockets. Idempotent; running connections go on."""
        self._accepting.cancel()
        for bound in self._sockets:
            bound.close()
        self._unlink()

    def unlink_at_end(self, path: Path) -> None:
        """Has the socket file removed when accepting stops, unless it is another one by then."""
        inode = path.stat().st_ino
        self._unlink = lambda: unlink_own(path, inode)

    async def _accept_all(self, handler: Handler, connections: trio.Nursery) -> None:
        async with trio.open_nursery() as loops:
            for bound in self._sockets:
                loops.start_soon(self._accept, bound, handler, connections)

    async def _accept(self, bound: socket.socket, handler: Handler, connections: trio.Nursery) -> None:
        while not self._accepting.cancel_called:
            await trio.lowlevel.wait_readable(bound)
            for _ in range(_ACCEPTS_AT_ONCE):
                try:
                    accepted, address = bound.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    # Others (ECONNABORTED, EPROTO, EPERM of a firewall) are its own fault: accept(2).
                    if error.errno in _EXHAUSTED:
                        await self._pause(error)
                    continue
                self._note_recovery()
                self._begin(accepted, address, handler, connections)

    def _begin(
        self, accepted: socket.socket, address: object, handler: Handler, connections: trio.Nursery
    ) -> None:
        """Admits here and not in the task, so that who came last is the one too many."""
        try:
            stream = SocketStream(accepted, is_tuned=True)
            host, text, uid = _who(accepted, address)
        except OSError as error:
            accepted.close()
            _log.debug("%s lost a connection: %s", self.entrance, error)
            return
        try:
            ticket = self._admission.admit(host)
        except Refused as refused:
            self._refuse(stream, text or f"uid {uid}", refused, connections)
            return
        if ticket.waits and not self._makes_room:
            self._makes_room = True
            connections.start_soon(self._make_room)
        connections.start_soon(
            self._serve_one, stream, AcceptedConnection(stream, text, ticket, uid), handler, connections
        )

    async def _make_room(self) -> None:
        """Ends when no connection waits any more; each waits for ``TURN_SECONDS`` at most."""
        try:
            while self._admission.has_waiting:
                self._admission.make_room()
                await trio.sleep(_ROOM_SECONDS)
        finally:
            self._makes_room = False

    def _refuse(self, stream: SocketStream, source: str, refused: Refused, connections: trio.Nursery) -> None:
        self._reporter.refused(self.entrance, source, refused)
        if self._decliner.may_answer:
            connections.start_soon(self._decliner.answer, stream, refused)
        else:
            stream.abort()

    async def _pause(self, error: OSError) -> None:
        self._exhausted = True
        now = trio.current_time()
        if now >= self._said_at + _SAY_AGAIN_SECONDS:
            self._said_at = now
            _log.error(
                "%s cannot accept connections: %s; raise the descriptor limit (ulimit -n, LimitNOFILE=)",
                self.entrance,
                error.strerror,
                extra={"reason": Reason.NO_DESCRIPTORS.word, "entrance": self.entrance},
            )
        await trio.sleep(_PAUSE_SECONDS)

    def _note_recovery(self) -> None:
        if self._exhausted:
            self._exhausted = False
            _log.info("%s accepts connections again", self.entrance, extra={"entrance": self.entrance})

    async def _serve_one(
        self, stream: SocketStream, accepted: AcceptedConnection, handler: Handler, connections: trio.Nursery
    ) -> None:
        late = await _wait_turn(accepted.ticket) if accepted.ticket.waits else accepted.ticket.evicted
        if late is not None:
            accepted.ticket.release()
            self._refuse(stream, accepted.source, late, connections)
            return
        try:
            with trio.CancelScope() as scope:
                accepted.ticket.on_evicted = scope.cancel
                await handler(accepted)
        except OSError as error:
            _log.debug("%s lost a connection: %s", self.entrance, error)
        except Exception:
            _log.exception("%s failed at a connection", self.entrance)
        finally:
            accepted.ticket.release()
            # Whatever the handler finished has been closed by it; the rest must look cut off.
            stream.abort()
        if accepted.ticket.evicted is not None:
            self._reporter.refused(self.entrance, accepted.source, accepted.ticket.evicted)


async def _wait_turn(ticket: Ticket) -> Refused | None:
    """Return the refusal if the turn did not come. Then, and when cancelled, the ticket is released."""
    turn = trio.Event()
    ticket.on_turn = ticket.on_evicted = turn.set
    try:
        with trio.move_on_after(TURN_SECONDS):
            await turn.wait()
        return ticket.refusal() if ticket.waits else ticket.evicted
    finally:
        if ticket.waits:
            ticket.release()


def _who(accepted: socket.socket, address: object) -> tuple[str, str, int | None]:
    """The host that counts as the source, the address for the log, and the user id on a unix socket."""
    if accepted.family == socket.AF_UNIX:
        credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return "", "", _UCRED.unpack(credentials)[1]
    assert isinstance(address, tuple)
    host, port = str(address[0]).removeprefix("::ffff:"), address[1]
    return host, join_host_port(host, port), None


async def listen_tcp(
    entrance: str,
    addresses: Sequence[str],
    admission: Admission,
    reporter: Reporter,
    decline: Decline | None = None,
) -> Listener:
    """A listener on all ``addresses`` (``host:port``). Raises ``CannotListen``, with none left open."""
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets += await bind_tcp(address)
    except BaseException:
        for bound in sockets:
            bound.close()
        raise
    return Listener(entrance, sockets, admission, reporter, decline)


def listen_unix(
    entrance: str,
    address: UnixAddress,
    admission: Admission,
    reporter: Reporter,
    decline: Decline | None = None,
) -> Listener:
    """A listener on a unix socket, whose file goes when accepting stops. Raises ``CannotListen``."""
    listener = Listener(entrance, [bind_unix(address)], admission, reporter, decline)
    listener.unlink_at_end(address.path)
    return listener
