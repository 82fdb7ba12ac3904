"""Many streams in one session: their states, their credit, and their order of sending. No I/O, no clock.

1. Opening. The server opens streams with rising odd numbers, assigned when the ``open`` enters a packet. The
   agent answers ``opened`` or ``refused``. Data may follow the ``open`` at once, up to the initial credit.
2. Order inside a stream. ``end`` follows its data; ``reset`` and ``stop`` may overtake data and drop queued
   bytes. Each concerns one direction (QUIC's RESET_STREAM and STOP_SENDING, RFC 9000 §3).
3. Sending. ``sending.py`` decides what enters a packet, retains sent bytes until the peer acknowledges them,
   and retransmits them after the loss of a carrier.
4. Receiving. ``receiving.py`` applies each frame to its stream.
5. Forgetting. The mux forgets a stream when both halves have ended and the peer acknowledged the frames that
   end them. It ignores late frames for a forgotten number; a frame for a number never used is an error.
6. Errors. A violation by the peer raises ``ProtocolError``. If it concerns one stream, the mux resets that
   stream and raises nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool, SendPool
from tunnel_core.mux.receiving import HANDLERS
from tunnel_core.mux.sending import Sending
from tunnel_core.mux.stream_state import END, OPEN, RESET, StreamState
from tunnel_core.reasons import Reason, Refused
from tunnel_core.tally import Tally
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Open, Payload

_ENDS = END | RESET


def _do_nothing() -> None:
    """Default of ``on_empty``."""


def _ignore_seconds(_: float) -> None:
    """Default of ``wake_later``."""


class Mux(Sending):
    """The streams of one session. ``opener``: this end opens streams (the server).

    ``on_open`` is called for each stream that the peer opens. ``on_empty`` is called when the last stream is
    forgotten, so the peer has all that this end sent. ``wake_later`` is called with the seconds that a frame
    may wait for others.
    """

    def __init__(
        self,
        limits: Limits,
        pool: CreditPool,
        *,
        opener: bool,
        send_pool: SendPool | None = None,
        wake_later: Callable[[float], None] = _ignore_seconds,
        on_open: Callable[[StreamState], None] | None = None,
        on_empty: Callable[[], None] = _do_nothing,
    ) -> None:
        super().__init__(limits, send_pool or SendPool(limits.send_pool), wake_later)
        self.pool = pool
        self.is_opener = opener
        self.peer_initial_credit = limits.initial_credit
        self.peer_max_streams = limits.max_streams
        self.opens_cancelled = 0  # opens that were reset before their answer, for OPEN_FLOOD
        self._on_open = on_open
        self._on_empty = on_empty
        self._next_number = 1
        self._highest_opened = 0
        self._unopened: dict[StreamState, None] = {}  # opened by this end, in no packet yet
        self._streams_of_user: Tally[str] = Tally()  # streams that this end opened, until they are forgotten

    # Opening.

    def open(self, request: Open, early_data: Payload = b"") -> StreamState:
        """Open a stream to the peer, which gets ``early_data`` with the open.

        Raises ``Refused`` at the peer's limit of streams, at the user's limit, or when the send pool is full.
        """
        free = self.peer_max_streams - len(self.streams) - len(self._unopened)
        if free <= 0:
            raise Refused(
                Reason.TOO_MANY_STREAMS, f"the node already has {self.peer_max_streams} streams open"
            )
        own, maximum = self._streams_of_user[request.user], self.limits.max_streams_per_user
        if own >= maximum and own >= free:  # a lone user stops at half, so that others can open streams
            raise Refused(Reason.TOO_MANY_OF_USER, _too_many(request.user, own, maximum, free))
        if self.send_pool.used >= self.send_pool.size:  # not even the reserve has room
            raise Refused(Reason.SEND_MEMORY_FULL)
        stream = StreamState(self, request, 0, self.peer_initial_credit)
        self._unopened[stream] = None
        self._streams_of_user[request.user] += 1
        if early_data:
            stream.push(early_data)  # before the wake, which may build the packet at once
        stream.want(OPEN)
        return stream

    def assign_number(self, stream: StreamState) -> None:
        """Assign the next number to a stream whose open enters a packet."""
        del self._unopened[stream]
        stream.number = self._next_number
        self._next_number += 2
        self.streams[stream.number] = stream

    def withdraw(self, stream: StreamState) -> None:
        """Remove a stream whose open never entered a packet; the peer never learns of it."""
        if stream in self._unopened:
            del self._unopened[stream]
            self._streams_of_user.take(stream.request.user)
            self._control.remove(stream)  # else cancelled opens would pile up while no carrier moves packets
        stream.send_reset = stream.recv_reset = stream.discarding = True
        stream.send.drop()
        stream.notify_owner()
        stream.detach()

    # Receiving.

    def receive(self, frame: Any) -> None:
        """Apply one frame of a stream. Raises ``ProtocolError`` if the frame violates the protocol."""
        if self._failed:
            return
        handler = HANDLERS.get(type(frame))
        if handler is None:
            if not isinstance(frame, Open):
                raise ProtocolError(Reason.UNKNOWN_FRAME, f"a {type(frame).__name__} frame is unknown here")
            self._receive_open(frame)
            return
        stream = self.streams.get(frame.stream)
        if stream is None:
            self._check_late(frame.stream)
            return
        try:
            handler(stream, frame)
        except ProtocolError as fault:
            if not fault.stream_only:
                raise
            stream.reset(fault.reason, fault.detail)

    def _check_late(self, number: int) -> None:
        used = self._next_number - 2 if self.is_opener else self._highest_opened
        if number > used or number % 2 == 0:
            raise ProtocolError(
                Reason.STREAM_NEVER_OPENED, f"a frame for stream {number}, which was never opened"
            )

    def _receive_open(self, frame: Open) -> None:
        if self.is_opener or frame.stream % 2 == 0:
            raise ProtocolError(Reason.PROTOCOL_ERROR, f"the peer may not open stream {frame.stream}")
        if frame.stream <= self._highest_opened:
            return  # received before
        if len(self.streams) >= 2 * self.limits.max_streams:
            raise ProtocolError(
                Reason.OPEN_FLOOD, "the peer opens streams faster than it acknowledges refusals"
            )
        self._highest_opened = frame.stream
        stream = StreamState(self, frame._replace(early_data=b""), frame.stream, frame.credit)
        self.streams[frame.stream] = stream
        if len(self.streams) > self.limits.max_streams or self._on_open is None:
            stream.refuse(
                Refused(Reason.TOO_MANY_STREAMS, f"the node allows {self.limits.max_streams} streams")
            )
            return
        try:
            stream.recv.add(0, frame.early_data)
        except ProtocolError as fault:
            stream.refuse(Refused(fault.reason, fault.detail))
        else:
            self._on_open(stream)

    # Ending.

    def maybe_forget(self, stream: StreamState) -> None:
        """Forget the stream if it is over. Return grown credit once the peer's half is read to its end."""
        recv = stream.recv
        if recv.window > recv.initial and recv.at_end:
            recv.release()  # this end's half may stay open for days
        if stream.pending or not (stream.done & _ENDS or stream.refusal is not None):
            return  # most calls end here
        if stream.over and self.streams.pop(stream.number, None) is not None:
            stream.detach()
            if self.is_opener:
                self._streams_of_user.take(stream.request.user)
            if not self.streams:
                self._on_empty()

    def fail(self, reason: Reason, detail: str) -> None:
        """End the session: reset and forget every stream at once, and send and accept no more frames."""
        streams = [*self.streams.values(), *self._unopened]
        self.streams.clear()
        self._unopened.clear()
        self._streams_of_user.clear()
        self.stop_sending()
        for stream in streams:
            if stream.reset_reason is None and stream.refusal is None:
                stream.reset_reason, stream.reset_detail = reason, detail
            stream.send_reset = stream.recv_reset = stream.discarding = True
            self.drop_sending(stream)
            stream.recv.drop()
            stream.notify_owner()
            stream.detach()


def _too_many(user: str, own: int, limit: int, free: int) -> str:
    rule = f"one user may have {limit}, and more only while more than the user's own number are free"
    cure = "close some, or raise [session] max_streams_per_user of the server"
    return f"{user} has {own} streams on this node and {free} are free: {rule}; {cure}"
