"""Accept loops: each connection gets its own task and a place in the count.

1. The accept loop only accepts. Handshakes and request heads are read in the connection's task, each with a
   deadline, so no connection delays another.
2. A connection is counted before its first byte is read (``admission``). A connection beyond the count of its
   source waits for its turn, unread, for up to 5 s. A refused connection gets an answer of its protocol, if
   that has one (``tunnel_core.http.declining``), else a reset.
3. Without free descriptors ``accept`` fails at once, and the connection stays in the queue. The loop logs the
   failure at most once a second, pauses, and continues when descriptors are free.
4. ``stop_accepting`` ends the loops and leaves running connections open. ``serve`` returns after the last
   connection has ended. Cancelling ``serve`` aborts all connections.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import trio

from tunnel_core.http.declining import Decline, Decliner
from tunnel_core.names import join_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.sockets import SocketStream, tune
from tunnel_core.telemetry.line_limiter import LineLimiter
from tunnel_core.telemetry.logs import log_event
from tunnel_server.listeners.addresses import UnixAddress, address_of, bind_tcp, bind_unix, unlink_own
from tunnel_server.listeners.admission import Admission, Ticket

_ACCEPTS_AT_ONCE = 16
"""Connections accepted in a row. Each takes a tenth of a millisecond, and other tasks wait meanwhile."""
_PAUSE_SECONDS = 0.1
TURN_SECONDS = 5.0
"""Time for which a connection waits for its turn: half of what clients wait for a handshake."""
_ROOM_SECONDS = 0.1
"""Time between two calls of ``make_room`` while a connection waits."""
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED

_log = logging.getLogger("qanat.listeners")


class Reporter(Protocol):
    """Recorder of refusals before authentication. It bounds and counts its log lines."""

    def refused(self, entrance: str, source: str, refused: Refused) -> None:
        """Record the refusal of a connection from ``source`` (``host:port``, or a user id)."""


class AcceptedConnection(NamedTuple):
    """A connection that was admitted. ``address`` is its ``host:port``, empty for a unix socket."""

    stream: trio.abc.HalfCloseableStream
    address: str
    ticket: Ticket
    uid: int | None = None
    """User id of the process at the other end of a unix socket; None for TCP."""
    turns: trio.Lock | None = None
    """Lock of the listener that a task holds while it computes for a connection that carries nothing yet."""

    @property
    def source(self) -> str:
        """The peer's address or user id, for the log."""
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
        *,
        gives_way: bool = True,
        is_carrier: bool = False,
    ) -> None:
        """``decline`` answers a refused connection; without it such a connection is reset.

        ``gives_way`` is False if the handler authenticates each connection in its first step, so that no
        connection that it serves ever gives way to another one. ``is_carrier``: connections carry sessions.
        """
        self.entrance = entrance
        self.addresses = [
            bound.getsockname() if bound.family == socket.AF_UNIX else address_of(bound) for bound in sockets
        ]
        """The listen addresses, each ``host:port`` or the path of a unix socket. They stay after the end."""
        self._sockets = sockets
        for bound in sockets:
            tune(bound, is_carrier=is_carrier)
        self._admission = admission
        self._reporter = reporter
        self._decliner = Decliner(decline)
        self._gives_way = gives_way
        self._accepting = trio.CancelScope()
        self._unlink: Callable[[], None] = lambda: None
        self._lines = LineLimiter()
        self._exhausted = self._recovery_is_news = False
        self._makes_room = False

    async def serve(
        self, handler: Handler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Accept until ``stop_accepting``, and return when the last connection has ended.

        ``handler`` serves each connection; ``OSError`` of it is logged at debug, other exceptions as errors.
        A cancellation closes the listener and aborts all connections.
        """
        try:
            async with trio.open_nursery() as connections:
                task_status.started()
                with self._accepting:
                    await self._accept_all(handler, connections)
        finally:
            self.stop_accepting()

    def stop_accepting(self) -> None:
        """Close the listening sockets. Running connections continue. Idempotent."""
        self._accepting.cancel()
        for bound in self._sockets:
            bound.close()
        self._unlink()

    def unlink_at_end(self, path: Path) -> None:
        """Remove the socket file when accepting stops, unless another file has replaced it."""
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
                    # Other errors (ECONNABORTED, EPROTO, EPERM of a firewall) concern one connection:
                    # accept(2).
                    if error.errno in _EXHAUSTED:
                        await self._pause(error)
                    continue
                if self._exhausted:
                    self._note_recovery()
                self._begin(accepted, address, handler, connections)

    def _begin(
        self, accepted: socket.socket, address: object, handler: Handler, connections: trio.Nursery
    ) -> None:
        """Admit the connection before its task starts, so that the newest connection is the refused one."""
        try:
            stream = SocketStream(accepted, is_tuned=True)
            host, text, uid = _peer_of(accepted, address)
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
        """Make room until no connection waits. A connection waits for at most ``TURN_SECONDS``."""
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
        left_out = self._lines.note(Reason.NO_DESCRIPTORS, trio.current_time())
        if left_out is not None:
            self._recovery_is_news = True
            cause = f"{self.entrance} cannot accept connections: {error.strerror}"
            sentence = f"{cause}; raise the descriptor limit (ulimit -n, LimitNOFILE=)"
            fields = {"reason": Reason.NO_DESCRIPTORS, "entrance": self.entrance}
            log_event(_log, logging.ERROR, sentence, **fields, left_out=left_out or None)
        await trio.sleep(_PAUSE_SECONDS)

    def _note_recovery(self) -> None:
        """Log that the listener accepts again, once for each line that said it does not."""
        self._exhausted = False
        if self._recovery_is_news:
            self._recovery_is_news = False
            log_event(
                _log, logging.INFO, f"{self.entrance} accepts connections again", entrance=self.entrance
            )

    async def _serve_one(
        self, stream: SocketStream, accepted: AcceptedConnection, handler: Handler, connections: trio.Nursery
    ) -> None:
        refused = await _wait_turn(accepted.ticket) if accepted.ticket.waits else accepted.ticket.evicted
        if refused is not None:
            accepted.ticket.release()
            self._refuse(stream, accepted.source, refused, connections)
            return
        try:
            if self._gives_way:
                with trio.CancelScope() as scope:
                    accepted.ticket.on_evicted = scope.cancel
                    await handler(accepted)
            else:
                await handler(accepted)  # without a scope, which would cost as much as the accept
        except OSError as error:
            _log.debug("%s lost a connection: %s", self.entrance, error)
        except Exception:
            _log.exception("%s failed at a connection", self.entrance)
        finally:
            accepted.ticket.release()
            # The handler has closed a finished connection. An unfinished one must be reset.
            stream.abort()
        if accepted.ticket.evicted is not None:
            self._reporter.refused(self.entrance, accepted.source, accepted.ticket.evicted)


async def _wait_turn(ticket: Ticket) -> Refused | None:
    """Wait for the turn, and return the refusal if it does not come in time.

    The ticket is released then, and when this call is cancelled.
    """
    turn = trio.Event()
    ticket.on_turn = ticket.on_evicted = turn.set
    try:
        with trio.move_on_after(TURN_SECONDS):
            await turn.wait()
        return ticket.refusal() if ticket.waits else ticket.evicted
    finally:
        if ticket.waits:
            ticket.release()


def _peer_of(accepted: socket.socket, address: object) -> tuple[str, str, int | None]:
    """Return the host that counts as the source, the address for the log, and the user id (unix socket)."""
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
    *,
    gives_way: bool = True,
    is_carrier: bool = False,
) -> Listener:
    """Return a listener on all ``addresses`` (``host:port``); the flags as in :class:`Listener`.

    Raises ``CannotListen``. No socket stays open then, nor after a cancellation.
    """
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets += await bind_tcp(address)
    except BaseException:
        for bound in sockets:
            bound.close()
        raise
    return Listener(
        entrance, sockets, admission, reporter, decline, gives_way=gives_way, is_carrier=is_carrier
    )


def listen_unix(
    entrance: str,
    address: UnixAddress,
    admission: Admission,
    reporter: Reporter,
    decline: Decline | None = None,
) -> Listener:
    """Return a listener on a unix socket, whose file is removed at its end. Raises ``CannotListen``."""
    listener = Listener(entrance, [bind_unix(address)], admission, reporter, decline)
    listener.unlink_at_end(address.path)
    return listener
