"""One tunnelled connection as trio sees it: a ``HalfCloseableStream`` with a reason when it breaks."""

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
    """The stream was reset, by the peer or by this end; ``reason`` and ``detail`` say why."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail or reason.meaning

    def __str__(self) -> str:
        return f"{self.reason.word}: {self.detail}"


class StreamStopped(StreamReset, PeerStoppedReceiving):
    """The peer reset only the half that leads to it."""


class TunnelStream(NowaitStream):
    """One tunnelled connection.

    Besides trio's contract: ``*_nowait`` and ``wait_*`` let ``relay`` move bytes without a checkpoint
    per piece. A cancelled ``receive_some`` loses nothing. A cancelled ``send_all`` leaves unknown how
    much was sent. ``aclose`` delivers what was sent and then EOF; when it is cancelled already, or
    leaves an ``async with`` by an exception, the stream is reset instead.
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
        self.was_reset_here = False  # before this end closed it
        self._receiver: trio.lowlevel.Task | None = None
        self._sender: trio.lowlevel.Task | None = None
        self._dialling: trio.CancelScope | None = None  # of whoever waits for the far dial
        self._leaving: trio.CancelScope | None = None
        self._breaking: trio.CancelScope | None = None
        self._taker: Callable[[], None] | None = None
        self.opened_at = trio.current_time()
        mux.on_readable = self._on_readable
        mux.on_writable = self._on_writable

    # Who and what.

    @property
    def id(self) -> str:
        """The same text on both ends; number 0 means that the open never left this end."""
        return f"{self._session_id}-{self._mux.number}"

    @property
    def open_sent(self) -> bool:
        """Whether the open has entered a packet; until then the stream can go without a trace."""
        return self._mux.number > 0

    @property
    def address(self) -> str:
        """What the agent dialled; empty until the stream was opened."""
        return self._mux.address

    @property
    def bytes_in(self) -> int:
        """Bytes received from the peer."""
        return self._mux.recv.received

    @property
    def bytes_out(self) -> int:
        """Bytes sent towards the peer."""
        return self._mux.send.max_sent

    @property
    def ended_by(self) -> Reason | None:
        """Why the stream broke or was refused; None while it is whole or ended well."""
        refusal = self._mux.refusal
        return refusal.reason if refusal else self._mux.reset_reason

    # Opening.

    async def wait_opened(self, wait_left: Callable[[], Awaitable[None]] = trio.sleep_forever) -> None:
        """Wait for the far dial, or until ``wait_left`` returns because the user has left.

        Raises ``Refused``. Cancelling it leaves the stream as it is.
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
        """Raises ``StreamReset`` if the peer reset its half."""
        if self._mux.recv_reset:
            self._raise_broken()

    def cancel_on_reset(self, scope: trio.CancelScope) -> None:
        """Have ``scope`` cancelled when the peer resets its half, also while nobody reads here."""
        self._breaking = scope
        if self._mux.recv_reset:
            scope.cancel()

    @contextmanager
    def cancel_on_peer_gone(self, scope: trio.CancelScope) -> Iterator[None]:
        """Cancels ``scope`` if the peer gives the stream up during the block: a user who left."""
        self._leaving = scope
        self._on_writable()
        try:
            yield
        finally:
            self._leaving = None

    def accept(self, address: str) -> None:
        """Agent: the dial succeeded; ``address`` is what was dialled.

        Where the client has spoken first, the answer to the open may wait a moment for the target's
        first bytes, which then travel with it.
        """
        self._mux.accept(address, may_wait=self._mux.recv.received > 0)

    def refuse(self, reason: Reason, detail: str) -> None:
        """Agent: the stream is not opened. Ends it."""
        self._mux.refuse(Refused(reason, detail))
        self._close()

    # Receiving.

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Bytes that arrived, or ``b""`` at the end. Raises ``StreamReset`` once the peer reset."""
        max_bytes = read_size(max_bytes)
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._receiver is not None:
            raise trio.BusyResourceError("another task is receiving from this stream")
        while (data := self.receive_nowait(max_bytes)) is None:
            await self.wait_readable()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return bytes(data)

    def receive_nowait(self, max_bytes: int) -> Payload | None:
        """What is there, ``b""`` at the end, None if nothing is there yet. Raises as ``receive_some``."""
        mux = self._mux
        if mux.recv.buffered:
            return mux.read(max_bytes)
        if self._closed:
            self._raise_closed()
        if mux.recv_reset:
            self._raise_broken()
        return None if mux.recv.size is None else b""

    def set_reader(self, taker: Callable[[], None] | None) -> None:
        """Has ``taker`` called, whenever something is there, to take it (``receive_nowait``).

        It is called inside the link's own step, so it must not block or raise. None ends that.
        """
        self._taker = taker
        if taker is not None and self._is_readable():
            taker()

    @property
    def undelivered(self) -> int:
        """Bytes that the peer has not confirmed; 0 once either end reset our half."""
        send = self._mux.send
        return 0 if self._mux.send_reset else send.queued + send.sent - send.acked

    @property
    def wants_no_more(self) -> bool:
        """Whether the peer gave up what we send."""
        return self._mux.send_reset

    async def wait_readable(self) -> None:
        """Waits until ``receive_nowait`` has an answer."""
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
        """Sends all of ``data`` as credit allows. Raises ``StreamReset`` if the peer wants no more."""
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
        """What credit and the bound of the queue leave; not positive while ``put`` would wait."""
        return self._mux.send.room

    def send_nowait(self, data: Payload) -> bool:
        """Queues ``data``, however little ``room`` there is."""
        mux = self._mux
        if self._closed or mux.send_reset or mux.send.size is not None:
            self._check_sendable()
        mux.push(data)
        return mux.send.room > 0

    async def flush(self) -> None:
        """Waits until there is room: what was put is on its way by itself. Raises as ``send_all``."""
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
        """This end is done with the stream.

        After ``reset`` that is ``StreamReset`` with its reason: the task that uses the stream is often not
        the task that reset it, and must not take the end for a fault of the other side of its relay.
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
        """Ends our half; what was sent is still delivered."""
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
        """End both halves at once and tell the peer why. Idempotent; never blocks.

        Tasks that use the stream then get ``StreamReset`` with the first reason that ended it.
        """
        self.was_reset_here = self.was_reset_here or not self._closed
        self._reset(reason, detail)

    def _reset(self, reason: Reason, detail: str = "") -> None:
        mux = self._mux
        if not self._closed or not (mux.send_reset or mux.send.acked == mux.send.size):
            mux.reset(reason, detail)  # else it is over
        self._close()

    async def aclose(self) -> None:
        """Graceful unless the caller is being cancelled: then a reset."""
        if self._closed:
            pass  # a second, forced close must not take back what the first one promised to deliver
        elif trio.current_effective_deadline() == -float("inf"):
            self._reset(Reason.USER_LEFT)
        else:
            self.close_nowait()
        await trio.lowlevel.checkpoint()

    def close_nowait(self) -> None:
        """``aclose`` without a checkpoint: what was sent is still delivered, nothing more is read."""
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
        """Whether there is room, or nothing to wait for."""
        return self._mux.send.room > 0 or not self._mux.can_send or self._closed

    def _on_readable(self) -> None:
        """Bytes arrived, the peer ended its half, or the stream broke."""
        if self._taker is not None:
            self._taker()
        if self._receiver is not None and self._is_readable():
            task, self._receiver = self._receiver, None
            trio.lowlevel.reschedule(task)

    def _on_writable(self) -> None:
        """There is room to send, the open was answered, or the stream broke."""
        mux = self._mux
        if self._sender is not None and self._is_writable():
            task, self._sender = self._sender, None
            mux.awaits_room = False
            trio.lowlevel.reschedule(task)
        if self._breaking is not None and mux.recv_reset:
            self._breaking.cancel()
        if self._leaving is not None and (mux.send_reset or mux.recv_reset):
            self._leaving.cancel()
        if self._dialling is not None and (mux.opened or mux.recv_reset):
            self._dialling.cancel()
