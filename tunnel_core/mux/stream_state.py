"""One stream as this end sees it: its two halves and its control frames. No I/O, no clock.

Control is state, not a queue: one set of bits is pending, one is sent, one is acknowledged. The loss of a
carrier makes the bits that it carried pending again. ``sending.py`` decides when bits and data are sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.mux.receive_buffer import ReceiveBuffer
from tunnel_core.mux.send_buffer import SendBuffer
from tunnel_core.reasons import Reason, Refused
from tunnel_core.wire.frames import Credit, Frame, Open, Opened, Payload, RefusedFrame, Reset, Stop

OPEN, OPENED, REFUSED, CREDIT, END, RESET, STOP = (1 << bit for bit in range(7))

_ANSWER_WAITS_SECONDS = 0.005
"""Time for which the answer to an open waits for the target's first bytes, where the client has spoken first:
one packet instead of two."""


def _do_nothing() -> None:
    """The default callback of a stream."""


class StreamOwner(Protocol):
    """The part of the mux that its streams call."""

    opens_cancelled: int

    @property
    def is_opener(self) -> bool: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def pool(self) -> CreditPool: ...

    def queue_control(self, stream: StreamState, wait_seconds: float) -> None:
        """Queue the stream's pending control, to be sent at once or within ``wait_seconds``."""

    def list_stream(self, stream: StreamState, *, is_end: bool = False) -> None:
        """Give the stream a turn to send its data or its end."""

    def assign_number(self, stream: StreamState) -> None:
        """Assign the next number to a stream whose open enters a packet."""

    def drop_sending(self, stream: StreamState) -> None:
        """Discard the stream's data, sent or not; none of it is transmitted any more."""

    def withdraw(self, stream: StreamState) -> None:
        """Remove a stream whose open never entered a packet."""

    def maybe_forget(self, stream: StreamState) -> None:
        """Forget the stream if it is over."""


class StreamState:
    """One stream as this end sees it. ``TunnelStream`` wraps it for trio.

    ``on_readable`` is called when there are bytes to read, when the peer ended its half, and when the stream
    was reset. ``on_writable`` is called when there is room to send, if ``awaits_room`` is set; when the open
    was answered; and when the stream was reset. Neither may block or raise. The mux calls none of them after
    it forgot the stream.
    """

    __slots__ = (
        "address",
        "awaits_room",
        "control_queued",
        "deficit",
        "discarding",
        "done",
        "emitted",
        "listed",
        "mux",
        "number",
        "on_opened",
        "on_readable",
        "on_writable",
        "opened",
        "pending",
        "recv",
        "recv_reset",
        "refusal",
        "request",
        "reset_detail",
        "reset_reason",
        "send",
        "send_reset",
    )

    def __init__(self, mux: StreamOwner, request: Open, number: int, credit: int) -> None:
        self.mux = mux
        self.number = number  # 0 until the open enters a packet
        self.request = request
        self.address = ""
        self.send = SendBuffer(credit, mux.limits)
        self.recv = ReceiveBuffer(mux.limits, mux.pool)
        self.opened = False
        self.refusal: Refused | None = None
        self.reset_reason: Reason | None = None  # None while the stream is not reset
        self.reset_detail = ""
        self.send_reset = False  # this end's half was reset
        self.recv_reset = False  # the peer's half was reset, or this end reads no more
        self.discarding = False  # this end discards what arrives
        self.on_readable: Callable[[], None] = _do_nothing
        self.on_writable: Callable[[], None] = _do_nothing
        # Called once, when the peer has connected to the target:
        self.on_opened: Callable[[], None] = _do_nothing
        self.awaits_room = False  # the owner waits for room in ``send``
        self.listed = False  # is in the scheduler's new or old list
        self.deficit = 0
        self.emitted = 0  # control bits that were sent
        self.control_queued = False  # is in the control queue
        self.pending = 0  # control bits to be sent
        self.done = 0  # control bits that the peer acknowledged

    # Called by the owner.

    def push(self, payload: Payload) -> None:
        """Queue bytes for the peer. Call only while ``can_send``."""
        self.send.push(payload)
        if not self.listed:
            self.mux.list_stream(self)

    @property
    def can_send(self) -> bool:
        """Whether this end's half is neither ended nor reset."""
        return self.send.size is None and not self.send_reset

    def end(self) -> None:
        """End this half; queued bytes are still delivered. Idempotent."""
        if self.can_send:
            self.send.size = self.send.sent + self.send.queued
            self.mux.list_stream(self, is_end=True)

    def read(self, max_bytes: int) -> Payload:
        """Return up to ``max_bytes`` that arrived. Call only while bytes are buffered."""
        recv = self.recv
        payload = recv.take(max_bytes)
        if recv.size is None:
            if recv.maybe_grant():
                self.want(CREDIT)
        elif not recv.buffered:
            self.mux.maybe_forget(self)
        return payload

    def stop_reading(self) -> None:
        """Discard unread and later bytes, and send ``stop`` unless the peer's half has ended. Idempotent."""
        if self.discarding:
            return
        self.discarding = True
        self.recv.drop()
        if self.recv.size is None:
            self.want(STOP)
        self.mux.maybe_forget(self)

    def reset(self, reason: Reason, detail: str) -> None:
        """End both halves now and drop the queued bytes of both. Idempotent; the first reason counts."""
        if self.reset_reason is None:
            self.reset_reason, self.reset_detail = reason, detail
        self.recv_reset = True
        if not self.number:
            self.mux.withdraw(self)
            return
        self.stop_reading()
        self.reset_sending()
        self.notify_owner()

    def reset_sending(self) -> None:
        """Reset this end's half, unless the peer acknowledged all of it."""
        if self.send_reset or self.done & END:
            return
        self.send_reset = True
        self.mux.drop_sending(self)
        self.want(RESET)
        self.notify_owner()

    def accept(self, address: str, *, may_wait: bool = False) -> None:
        """Answer ``opened``: the agent connected to ``address``.

        ``may_wait``: the answer may wait 5 ms for data.
        """
        self.address = address
        self.opened = True
        self.want(OPENED, may_wait=may_wait)

    def refuse(self, refusal: Refused) -> None:
        """Answer ``refused``: the agent did not dial, or its dial failed. The target got no early data."""
        self.refusal = refusal
        self.discarding = self.send_reset = self.recv_reset = True
        self.recv.drop()
        self.want(REFUSED)
        self.notify_owner()

    # Called by the mux.

    def notify_owner(self) -> None:
        """Call reader and writer, because the stream was reset."""
        self.on_readable()
        self.on_writable()

    def detach(self) -> None:
        """Drop the callbacks, because the mux has forgotten the stream and only its owner changes it now.

        The owner's callbacks refer to the stream. Such cycles wait for the collector's oldest generation, and
        held 6 KiB for each refused open.
        """
        self.on_readable = self.on_writable = self.on_opened = _do_nothing

    def want(self, bits: int, *, may_wait: bool = False) -> None:
        """Make these control bits pending."""
        self.pending |= bits
        self.mux.queue_control(self, _ANSWER_WAITS_SECONDS if may_wait else 0)

    def open_frame(self, early_data: Payload) -> Open:
        """Return the open frame. The stream must have a number."""
        return self.request._replace(stream=self.number, credit=self.recv.granted, early_data=early_data)

    def take_control(self, frames: list[Frame]) -> int:
        """Append the pending control frames to ``frames``. Return their bits."""
        bits, self.pending, self.control_queued = self.pending, 0, False
        self.emitted |= bits
        if bits & OPENED:
            frames.append(Opened(self.number, self.recv.granted, self.address))
        if bits & REFUSED:
            assert self.refusal is not None
            frames.append(RefusedFrame(self.number, self.refusal.reason, self.refusal.detail))
        if bits & CREDIT and not self.discarding:
            frames.append(Credit(self.number, self.recv.granted))
        if bits & RESET:
            frames.append(Reset(self.number, self.reset_reason or Reason.USER_LEFT, self.reset_detail))
        if bits & STOP:
            frames.append(Stop(self.number, self.reset_reason or Reason.USER_LEFT))
        return bits

    def take_back(self, bits: int) -> None:
        """Make these bits pending again, except those without effect by now."""
        self.emitted &= ~bits
        bits &= ~END  # sent in the stream's turn
        if self.discarding:
            bits &= ~CREDIT
        if bits:
            self.pending |= bits
            self.control_queued = True

    @property
    def open_pending(self) -> bool:
        """Whether the open has yet to be sent, or to be sent again."""
        return bool(self.pending & OPEN)

    @property
    def control_pending(self) -> bool:
        """Whether control frames have yet to be sent."""
        return bool(self.pending)

    @property
    def wants_turn(self) -> bool:
        """Whether there is data that credit allows to send, or only the end is left to send."""
        send = self.send
        if self.send_reset:
            return False
        if send.queued:
            return send.sent < send.limit
        return send.size == send.sent and not self.emitted & END

    @property
    def over(self) -> bool:
        """Whether both halves have ended and the peer acknowledged the frames that end them."""
        if self.refusal is not None:
            return not self.pending and self.done & self.emitted & REFUSED == self.emitted & REFUSED
        ended = self.done & RESET if self.send_reset else self.done & END
        if not ended or self.pending:
            return False
        return self.recv.size is not None and (self.discarding or not self.recv.buffered)


Receipt: TypeAlias = tuple[StreamState, int, int]
"""The part of a packet that one stream filled: the stream, its control bits, and the offset sent up to."""
