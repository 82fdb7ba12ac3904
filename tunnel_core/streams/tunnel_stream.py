"""One tunnelled connection as a ``trio.abc.HalfCloseableStream``, with a reason when it is reset."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

import trio

from tunnel_core.limits import KIB
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.nowait import NowaitStream, PeerStoppedReceiving
from tunnel_core.streams.sockets import read_size
from tunnel_core.wire.frames import Payload

_SEND_PIECE = 256 * KIB


class StreamReset(trio.BrokenResourceError):
    """Raised when the stream was reset, by the peer or by this end, with ``reason`` and ``detail``."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail or reason.meaning

    def __str__(self) -> str:
        return f"{self.reason.word}: {self.detail}"


class StreamStopped(StreamReset, PeerStoppedReceiving):
    """Raised when the peer stopped receiving, while its own half goes on."""


class TunnelStream(NowaitStream):
    """One tunnelled connection.

    Besides trio's contract, ``*_nowait`` and ``wait_*`` let ``relay`` move bytes without a checkpoint per
    piece. A cancelled ``receive_some`` loses nothing. After a cancelled ``send_all`` the number of sent bytes
    is unknown. ``aclose`` delivers sent bytes and then EOF. If the caller is cancelled already, or leaves an
    ``async with`` by an exception, the stream is reset instead.
    """

    def __init__(self, mux: StreamState, session_id: str, on_closed: Callable[[TunnelStream], None]) -> None:
        self._mux = mux
        request = mux.request
        self.target, self.user, self.entrance = request.target, request.user, request.entrance
        self.target_tls = request.target_tls
        """Whether the server asks the agent to speak TLS to a target that is an https service."""
        self._session_id = session_id
        self._on_closed = on_closed
        self._closed = False
        self.was_reset_here = False  # by ``reset``, before any close
        self._receiver: trio.lowlevel.Task | None = None
        self._sender: trio.lowlevel.Task | None = None
        self._dialling: trio.CancelScope | None = None  # of a task in ``wait_opened``
        self._peer_gone_scope: trio.CancelScope | None = None
        self._on_reset: Callable[[], object] | None = None
        self._reader: Callable[[], None] | None = None
        self.opened_at = trio.current_time()
        mux.on_readable = self._on_readable
        mux.on_writable = self._on_writable

    # Identity and statistics.

    @property
    def id(self) -> str:
        """The stream's id, the same text on both ends. Number 0 means that the open never left this end."""
        return f"{self._session_id}-{self._mux.number}"

    @property
    def open_sent(self) -> bool:
        """Whether the open has entered a packet. Before that the peer never learns of the stream."""
        return self._mux.number > 0

    @property
    def address(self) -> str:
        """The address that the agent dialled; empty until the stream is open."""
        return self._mux.address

    @property
    def bytes_in(self) -> int:
        """Bytes received from the peer."""
        return self._mux.recv.received

    @property
    def bytes_out(self) -> int:
        """Bytes sent to the peer."""
        return self._mux.send.max_sent

    @property
    def ended_by(self) -> Reason | None:
        """The reason of a reset or refusal; None if there was none."""
        refusal = self._mux.refusal
        return refusal.reason if refusal else self._mux.reset_reason

    # Opening.

    async def wait_opened(self, wait_left: Callable[[], Awaitable[None]] = trio.sleep_forever) -> None:
        """Wait until the peer has dialled, or until ``wait_left`` returns because the user has left.

        Raises ``Refused``. Cancellation leaves the stream unchanged. One task at a time may wait.
        """
        mux = self._mux
        if mux.opened or mux.recv_reset:
            await trio.lowlevel.checkpoint()
        else:
            with trio.CancelScope() as self._dialling:
                await wait_left()
            self._dialling = None
        if not mux.opened:
            raise self._why_not_opened()

    def check(self) -> None:
        """Raise ``StreamReset`` if the peer reset its half."""
        if self._mux.recv_reset:
            self._raise_broken()

    def call_on_reset(self, function: Callable[[], object] | None) -> None:
        """Call ``function`` when the peer resets its half, even while no task reads. None ends that.

        ``function`` must not block or raise. It may be called more than once.
        """
        self._on_reset = function
        if function is not None and self._mux.recv_reset:
            function()

    @contextmanager
    def cancel_on_peer_gone(self, scope: trio.CancelScope) -> Iterator[None]:
        """Cancel ``scope`` if the peer stops receiving or resets the stream during the block."""
        self._peer_gone_scope = scope
        self._on_writable()
        try:
            yield
        finally:
            self._peer_gone_scope = None

    def accept(self, address: str) -> None:
        """Answer the open: the agent connected to ``address``.

        If the client spoke first, the answer may wait a moment and travel with the target's first bytes.
        """
        self._mux.accept(address, may_wait=self._mux.recv.received > 0)

    def refuse(self, reason: Reason, detail: str) -> None:
        """Refuse the open, on the agent, and end the stream."""
        self._mux.refuse(Refused(reason, detail))
        self._close()

    # Receiving.

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive bytes, or ``b""`` at the end. Raises ``StreamReset`` after a reset."""
        max_bytes = read_size(max_bytes)
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._receiver is not None:
            raise trio.BusyResourceError("another task is receiving from this stream")
        while (data := self.receive_nowait(max_bytes)) is None:
            await self.wait_readable()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return bytes(data)

    def receive_nowait(self, max_bytes: int) -> Payload | None:
        """Return bytes, ``b""`` at the end, None if there are none yet. Raises as ``receive_some``."""
        mux = self._mux
        if mux.recv.buffered:
            return mux.read(max_bytes)
        if self._closed:
            self._raise_closed()
        if mux.recv_reset:
            self._raise_broken()
        return None if mux.recv.size is None else b""

    def set_reader(self, reader: Callable[[], None] | None) -> None:
        """Call ``reader`` whenever there is something for ``receive_nowait`` to return. None ends that.

        The session's own step calls ``reader``, so it must not block or raise.
        """
        self._reader = reader
        if reader is not None and self._is_readable():
            reader()

    @property
    def undelivered(self) -> int:
        """Bytes that the peer has not acknowledged; 0 once either end reset our half."""
        send = self._mux.send
        return 0 if self._mux.send_reset else send.queued + send.sent - send.acked

    @property
    def peer_stopped_receiving(self) -> bool:
        """Whether the peer stopped receiving, or this end reset its own half."""
        return self._mux.send_reset

    async def wait_readable(self) -> None:
        """Wait until ``receive_nowait`` has an answer. Cancellation loses nothing."""
        if self._receiver is not None:
            raise trio.BusyResourceError("another task is receiving from this stream")
        if self._is_readable():
            return
        self._receiver = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._receiver = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    # Sending.

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data`` as credit allows. Raises ``StreamReset`` if the peer stopped receiving."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._sender is not None:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_sendable()
        view = memoryview(data)
        for start in range(0, len(view), _SEND_PIECE):
            await self.flush()
            self._mux.push(bytes(view[start : start + _SEND_PIECE]))
        await trio.lowlevel.cancel_shielded_checkpoint()

    @property
    def room(self) -> int:
        """Bytes that credit and the queue's bound allow; 0 or less while ``put`` would wait."""
        return self._mux.send.room

    def send_nowait(self, data: Payload) -> bool:
        """Queue ``data``, however little ``room`` there is."""
        mux = self._mux
        if self._closed or mux.send_reset or mux.send.size is not None:
            self._check_sendable()
        mux.push(data)
        return mux.send.room > 0

    async def flush(self) -> None:
        """Wait until there is room; queued bytes leave by themselves. Raises as ``send_all``."""
        await self._wait_room()
        self._check_sendable()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._sender is not None:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_sendable()
        await self.flush()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _wait_room(self) -> None:
        while not self._is_writable():
            self._sender = trio.lowlevel.current_task()
            self._mux.awaits_room = True

            def abort(_: object) -> trio.lowlevel.Abort:
                self._sender = None
                self._mux.awaits_room = False
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)

    def _raise_closed(self) -> NoReturn:
        """Raise ``StreamReset`` with its reason after ``reset``, else ``trio.ClosedResourceError``.

        Often another task reset the stream, and this task must not blame the other side of its relay.
        """
        if self.was_reset_here:
            self._raise_broken()
        raise trio.ClosedResourceError("this stream was closed here")

    def _check_sendable(self) -> None:
        if self._closed:
            self._raise_closed()
        if self._mux.send_reset:
            self._raise_broken()
        if self._mux.send.size is not None:
            raise trio.ClosedResourceError("this stream's sending half was ended here")

    async def send_eof(self) -> None:
        """End our half; sent bytes are still delivered."""
        await trio.lowlevel.checkpoint()
        if self._sender is not None:
            raise trio.BusyResourceError("another task is sending on this stream")
        self.send_eof_nowait()

    def send_eof_nowait(self) -> bool:
        if self._closed:
            self._raise_closed()
        if self._mux.send_reset:
            self._raise_broken()
        self._mux.end()
        return True

    # Ending.

    def reset(self, reason: Reason, detail: str = "") -> None:
        """End both halves at once, and send reason and detail to the peer. Idempotent; never blocks.

        Tasks that use the stream then get ``StreamReset`` with the first reason that ended it.
        """
        self.was_reset_here = self.was_reset_here or not self._closed
        self._reset(reason, detail)

    def _reset(self, reason: Reason, detail: str = "") -> None:
        mux = self._mux
        if not self._closed or not (mux.send_reset or mux.send.acked == mux.send.size):
            mux.reset(reason, detail)  # else both halves are over
        self._close()

    @property
    def is_closed(self) -> bool:
        """Whether this end closed or reset the stream."""
        return self._closed

    async def aclose(self) -> None:
        """Close gracefully, or reset the stream if the caller is cancelled already."""
        if self._closed:
            pass  # a second, forced close must not discard bytes that the first one promised to deliver
        elif trio.current_effective_deadline() == -float("inf"):
            self._reset(Reason.USER_LEFT)
        else:
            self.close_nowait()
        await trio.lowlevel.checkpoint()

    def close_nowait(self) -> None:
        """Close without a checkpoint. Sent bytes are still delivered; no more bytes are read. Idempotent."""
        if not self._closed:
            self._mux.end()
            self._mux.stop_reading()
            self._close()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self._reset(Reason.USER_LEFT)
        await self.aclose()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._on_readable()
            self._on_writable()
            self._on_closed(self)

    def _why_not_opened(self) -> Refused:
        mux = self._mux
        if mux.refusal is not None:
            return Refused(mux.refusal.reason, mux.refusal.detail)
        reason = mux.reset_reason or Reason.SESSION_LOST
        return Refused(reason, mux.reset_detail) if mux.recv_reset else Refused(Reason.USER_LEFT)

    def _raise_broken(self) -> NoReturn:
        mux = self._mux
        if mux.refusal is not None:
            raise StreamReset(mux.refusal.reason, mux.refusal.detail)
        kind = StreamReset if mux.recv_reset else StreamStopped
        raise kind(mux.reset_reason or Reason.USER_LEFT, mux.reset_detail)

    # Waking.

    def _is_readable(self) -> bool:
        """Whether ``receive_nowait`` has an answer."""
        recv = self._mux.recv
        return bool(recv.buffered or recv.size is not None or self._mux.recv_reset or self._closed)

    def _is_writable(self) -> bool:
        """Whether there is room, or waiting for room is of no use."""
        return self._mux.send.room > 0 or not self._mux.can_send or self._closed

    def _on_readable(self) -> None:
        """Wake the reader: bytes arrived, the peer ended its half, or the stream was reset."""
        if self._reader is not None:
            self._reader()
        if self._receiver is not None and self._is_readable():
            task, self._receiver = self._receiver, None
            trio.lowlevel.reschedule(task)

    def _on_writable(self) -> None:
        """Wake the sender: there is room, the open was answered, or the stream was reset."""
        mux = self._mux
        if self._sender is not None and self._is_writable():
            task, self._sender = self._sender, None
            mux.awaits_room = False
            trio.lowlevel.reschedule(task)
        if self._on_reset is not None and mux.recv_reset:
            self._on_reset()
        if self._peer_gone_scope is not None and (mux.send_reset or mux.recv_reset):
            self._peer_gone_scope.cancel()
        if self._dialling is not None and (mux.opened or mux.recv_reset):
            self._dialling.cancel()
