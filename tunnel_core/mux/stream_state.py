"""One stream as this end sees it: what its owner does with it, and what it has yet to send. No I/O, no clock.

Control is state, not a queue: a set of bits that are to be sent, one of those that were, one of those
that the peer confirmed. A lost carrier makes bits that it took pending again. ``sending.py`` gives turns.
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


def _nothing() -> None:
    """The reaction of a stream that nobody watches."""


class StreamOwner(Protocol):
    """What a stream asks of its mux."""

    opens_cancelled: int

    @property
    def is_opener(self) -> bool: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def pool(self) -> CreditPool: ...

    def queue_control(self, stream: StreamState, wait_seconds: float) -> None:
        """Have the stream's pending control sent, at once or within so many seconds."""

    def list_stream(self, stream: StreamState, *, is_end: bool = False) -> None:
        """Give the stream a turn to send its data, or its end."""

    def give_number(self, stream: StreamState) -> None:
        """Number the stream: its open enters a packet."""

    def drop_sending(self, stream: StreamState) -> None:
        """Send nothing more of the stream's data, nor again."""

    def withdraw(self, stream: StreamState) -> None:
        """Forget a stream whose open never entered a packet."""

    def maybe_forget(self, stream: StreamState) -> None:
        """Forget the stream if it is over."""


class StreamState:
    """One stream as this end sees it. ``TunnelStream`` wraps it for trio.

    ``on_readable`` is called when there are bytes to read, when the peer ended its half, and when the stream
    broke. ``on_writable`` is called when there is room to send, if ``awaits_room`` is set; when the open was
    answered; and when the stream broke. Neither may block or raise. After the mux forgot the stream none is
    called any more.
    """

    __slots__ = (
        "_done",
        "address",
        "awaits_room",
        "control_queued",
        "deficit",
        "discarding",
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
        self.number = number  # 0 until the open entered a packet
        self.request = request
        self.address = ""
        self.send = SendBuffer(credit, mux.limits)
        self.recv = ReceiveBuffer(mux.limits, mux.pool)
        self.opened = False
        self.refusal: Refused | None = None
        self.reset_reason: Reason | None = None  # why the stream broke; None while it is whole
        self.reset_detail = ""
        self.send_reset = False  # our half ended by reset
        self.recv_reset = False  # the peer's half ended by reset, or ours to read is gone
        self.discarding = False  # nothing is read any more
        self.on_readable: Callable[[], None] = _nothing
        self.on_writable: Callable[[], None] = _nothing
        self.on_opened: Callable[[], None] = _nothing  # called once, when the far dial succeeded
        self.awaits_room = False  # the owner waits until ``send`` has room
        self.listed = False  # stands in the new or the old list
        self.deficit = 0
        self.emitted = 0  # control that was sent
        self.control_queued = False  # stands in the control queue
        self.pending = 0  # control that is to be sent
        self._done = 0

    # What the owner does.

    def push(self, payload: Payload) -> None:
        """Queues bytes for the peer. Call only while ``can_send``."""
        self.send.push(payload)
        if not self.listed:
            self.mux.list_stream(self)

    @property
    def can_send(self) -> bool:
        """Whether our half is neither ended nor reset."""
        return self.send.size is None and not self.send_reset

    def end(self) -> None:
        """Our half is complete; what is queued is still delivered."""
        if self.can_send:
            self.send.size = self.send.sent + self.send.queued
            self.mux.list_stream(self, is_end=True)

    def read(self, max_bytes: int) -> Payload:
        """Takes up to ``max_bytes`` that arrived; call only with something buffered."""
        recv = self.recv
        payload = recv.take(max_bytes)
        if recv.size is None:
            if recv.maybe_grant():
                self.want(CREDIT)
        elif not recv.buffered:
            self.mux.maybe_forget(self)
        return payload

    def stop_reading(self) -> None:
        """We read no more: drops what is buffered and tells the peer, unless it had ended."""
        if self.discarding:
            return
        self.discarding = True
        self.recv.drop()
        if self.recv.size is None:
            self.want(STOP)
        self.mux.maybe_forget(self)

    def reset(self, reason: Reason, detail: str) -> None:
        """Ends both halves now; what is queued either way is dropped. Idempotent."""
        if self.reset_reason is None:
            self.reset_reason, self.reset_detail = reason, detail
        self.recv_reset = True
        if not self.number:
            self.mux.withdraw(self)
            return
        self.stop_reading()
        self.give_up_sending()
        self.tell_owner()

    def give_up_sending(self) -> None:
        """Resets our half, unless the peer confirmed all of it."""
        if self.send_reset or self._done & END:
            return
        self.send_reset = True
        self.mux.drop_sending(self)
        self.want(RESET)
        self.tell_owner()

    def accept(self, address: str, *, may_wait: bool = False) -> None:
        """Agent: the dial succeeded. ``may_wait``: the answer may wait for what else is to be said."""
        self.address = address
        self.opened = True
        self.want(OPENED, may_wait=may_wait)

    def refuse(self, refusal: Refused) -> None:
        """Agent: there was no dial, or it failed; nothing was done with early data."""
        self.refusal = refusal
        self.discarding = self.send_reset = self.recv_reset = True
        self.recv.drop()
        self.want(REFUSED)
        self.tell_owner()

    # What the mux does.

    def tell_owner(self) -> None:
        """The stream was opened, or it broke: that concerns reader and writer."""
        self.on_readable()
        self.on_writable()

    def detach(self) -> None:
        """Call nobody any more: the mux has forgotten the stream, so nothing changes but by its owner.

        The owner's callbacks lead back to the stream. Such cycles wait for the collector's oldest generation,
        and were 6 KiB for each open that was refused.
        """
        self.on_readable = self.on_writable = self.on_opened = _nothing

    def want(self, bits: int, *, may_wait: bool = False) -> None:
        """Have these control bits sent."""
        self.pending |= bits
        self.mux.queue_control(self, _ANSWER_WAITS_SECONDS if may_wait else 0)

    def open_frame(self, early_data: Payload) -> Open:
        """The open of a stream that has a number."""
        return self.request._replace(stream=self.number, credit=self.recv.granted, early_data=early_data)

    def take_control(self, frames: list[Frame]) -> int:
        """Appends the pending control frames; returns their bits."""
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

    def confirm(self, bits: int) -> None:
        self._done |= bits

    def take_back(self, bits: int) -> None:
        """What these bits said must be said again, unless it means nothing any more."""
        self.emitted &= ~bits
        bits &= ~END  # said by the stream's turn
        if self.discarding:
            bits &= ~CREDIT
        if bits:
            self.pending |= bits
            self.control_queued = True

    @property
    def open_pending(self) -> bool:
        """Whether the open has yet to be said, or to be said again."""
        return bool(self.pending & OPEN)

    @property
    def control_pending(self) -> bool:
        return bool(self.pending)

    @property
    def wants_turn(self) -> bool:
        """Whether there is data that may be sent, or nothing left but to say so."""
        send = self.send
        if self.send_reset:
            return False
        if send.queued:
            return send.sent < send.limit
        return send.size == send.sent and not self.emitted & END

    @property
    def over(self) -> bool:
        """Both halves have ended and the peer confirmed everything that says so."""
        if self.refusal is not None:
            return not self.pending and self._done & self.emitted & REFUSED == self.emitted & REFUSED
        ended = self._done & RESET if self.send_reset else self._done & END
        if not ended or self.pending:
            return False
        return self.recv.size is not None and (self.discarding or not self.recv.buffered)


Receipt: TypeAlias = tuple[StreamState, int, int]
"""What one packet carried of one stream: the stream, control bits, and the offset up to which it was sent."""
