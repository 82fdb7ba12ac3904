"""Many streams in one session: their states, their credit, and whose turn it is. No I/O, no clock.

1. Opening. The server opens (odd numbers, rising, given when the ``open`` enters a packet); the agent
   answers ``opened`` or ``refused``. Data may follow the ``open`` at once, up to the initial credit.
2. Order inside a stream: ``end`` comes after its data; ``reset`` and ``stop`` may overtake and drop
   what is queued. Each concerns one direction (QUIC's RESET_STREAM and STOP_SENDING, RFC 9000 §3).
3. Control is state, not a queue: each stream has a set of pending control bits and one place in the
   control queue, however often something changes before the carrier takes a packet.
4. Turns. Control and ends first, always. Then data as ``turns.py`` decides, within two budgets: what the
   flight limit leaves to bulk, and what it leaves to quick bytes, early data among them.
5. ``take`` returns frames and a receipt. ``confirmed(receipt)`` frees what the frames carried. A
   stream is forgotten when both halves have ended and all it said was confirmed; frames for a
   forgotten number are late and ignored, frames for a number never used are a fault.
6. A lost carrier. ``take_back`` makes what its receipts carried pending again: data returns to the
   front of its queue, control bits to the control queue, opens first and in the order of their
   numbers. Nothing of a stream is said before its open was. Then the turns go on as always.
7. Faults of the peer raise ``PeerFault``; those that concern one stream reset it and go no further.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from tunnel_core.credit import CreditPool, SendPool
from tunnel_core.errors import PeerFault
from tunnel_core.frames import (
    Credit,
    Data,
    DataParts,
    End,
    Frame,
    Open,
    Opened,
    Payload,
    RefusedFrame,
    Reset,
    Stop,
)
from tunnel_core.limits import Limits
from tunnel_core.mux_stream import END, OPEN, MuxStream, Receipt
from tunnel_core.reasons import OF_A_STREAM, Reason, Refused
from tunnel_core.send_buffer import SendHalf
from tunnel_core.tally import Tally
from tunnel_core.turns import Turns

_FRAME_RESERVE = 16
"""Frames that a packet may get after the last look at their number: of one stream and of the session."""


_END_WAITS_SECONDS = 0.002
"""For the next open, or the last answer; on any real link far less than a round trip."""


def _nothing() -> None:
    """The reaction of a stream that nobody watches."""


def _nothing_later(_: float) -> None:
    """The same."""


class Mux:
    """The streams of one session. ``opener``: this end opens streams (the server)."""

    def __init__(
        self,
        limits: Limits,
        pool: CreditPool,
        *,
        opener: bool,
        send_pool: SendPool | None = None,
        wake: Callable[[], None] = _nothing,
        wake_for_data: Callable[[], None] = _nothing,
        wake_later: Callable[[float], None] = _nothing_later,
        on_open: Callable[[MuxStream], None] | None = None,
        on_empty: Callable[[], None] = _nothing,
    ) -> None:
        self.limits = limits
        self.pool = pool
        self.send_pool = send_pool or SendPool(limits.send_pool)
        self.streams: dict[int, MuxStream] = {}
        self.unconfirmed = 0  # bytes of all streams on their way over the carrier
        self.held = 0  # those, and what was taken back: our part of ``send_pool``
        self.peer_initial_credit = limits.initial_credit
        self.peer_max_streams = limits.max_streams
        self.peer_early_data = limits.early_data
        self.opens_cancelled = 0  # opens that were reset before an answer: OPEN_FLOOD's count
        self.presses = False  # some control is to be said at once, whatever else there is
        self._max_frames = limits.max_frames_per_packet - _FRAME_RESERVE
        self._opener = opener
        self.wake = wake  # there is something to send
        self.wake_for_data = wake_for_data  # there is, and somebody may wait for it
        self.wake_later = wake_later  # there is, but it may wait so many seconds for company
        self._on_open = on_open
        self._on_empty = on_empty  # called when the last stream is forgotten: all it said has arrived
        self._failed = False
        self._next_number = 1
        self._highest_opened = 0
        self._unopened: dict[MuxStream, None] = {}  # opened by us, not in a packet yet
        self._of_user: Tally[str] = Tally()  # streams that we opened, until they are forgotten
        self._control: deque[MuxStream] = deque()
        self._turns = Turns()

    # Opening.

    def open(self, request: Open, early_data: Payload = b"") -> MuxStream:
        """A new stream towards the peer. Raises ``Refused`` at the peer's limit."""
        free = self.peer_max_streams - len(self.streams) - len(self._unopened)
        if free <= 0:
            raise Refused(
                Reason.TOO_MANY_STREAMS, f"the node already has {self.peer_max_streams} streams open"
            )
        own, most = self._of_user[request.user], self.limits.max_streams_per_user
        if own >= most and own >= free:  # a lone user stops at half, so that others can open streams
            raise Refused(Reason.TOO_MANY_OF_USER, _too_many(request.user, own, most, free))
        if self.send_pool.free <= 0:  # its reserve too
            raise Refused(Reason.SEND_MEMORY_FULL)
        stream = MuxStream(self, request, 0, self.peer_initial_credit)
        self._unopened[stream] = None
        self._of_user.add(request.user)
        if early_data:
            stream.push(early_data)  # before the wake, which may take the packet at once
        stream.want(OPEN)
        return stream

    def withdraw(self, stream: MuxStream) -> None:
        """A stream whose open never entered a packet is gone without a trace."""
        if stream in self._unopened:
            del self._unopened[stream]
            self._of_user.take(stream.request.user)
            self._control.remove(stream)  # else users who come and go would heap up while nothing moves
        stream.send_reset = stream.recv_reset = stream.discarding = True
        stream.send.drop()
        stream.on_change()
        stream.detach()

    # What enters the next packet.

    def queue_control(self, stream: MuxStream) -> None:
        if not self._failed:
            self._control.append(stream)

    def list_stream(self, stream: MuxStream, *, is_end: bool = False) -> None:
        """Gives the stream a turn if it has something to say and stands in no list.

        A mere end waits a moment for company: who closes one connection often opens the next.
        """
        if not stream.number or stream.open_pending or not stream.wants_turn:
            return
        if not stream.send.queued:
            self._turns.ends[stream] = None
            if is_end:
                self.wake_later(_END_WAITS_SECONDS)
        elif not stream.listed:
            self._turns.add(stream)
            self.wake_for_data()

    @property
    def has_work(self) -> bool:
        """Whether there is something to say, once there is room for it."""
        return bool(self._control or self._turns.ends or self._turns)

    @property
    def has_data(self) -> bool:
        """Whether some stream has data that credit and memory let it send."""
        return bool(self._turns) and self._send_room > 0

    def may_send(self, bulk: int, quick: int) -> bool:
        """Whether these budgets let any stream send data that memory allows."""
        return self._turns.may_go(bulk, quick) and self._send_room > 0

    @property
    def _send_room(self) -> int:
        """Bytes that may leave now. What was taken back has its place in the pool already."""
        unconfirmed, held = self.unconfirmed, self.held
        shared = self.send_pool.room(held)
        if held != unconfirmed:
            shared = max(0, shared) + held - unconfirmed
        return min(self.limits.max_send_memory - unconfirmed, shared)

    def take(self, bulk: int, quick: int) -> tuple[list[Frame], list[Receipt]]:
        """Frames for one packet, and their receipt. Control and ends always go.

        ``quick`` bounds the content that is early or of streams with little queued, ``bulk`` all content.
        """
        frames: list[Frame] = []
        receipt: list[Receipt] = []
        if self._control:
            early = self._take_control(frames, receipt, quick)
            bulk, quick = bulk - early, quick - early
        self.presses = bool(self._control)
        while self._turns.ends and len(frames) < self._max_frames:
            self._take_data(self._turns.ends.popitem()[0], frames, receipt, 0)
        if self._turns:
            self._take_turns(frames, receipt, bulk, quick)
        return frames, receipt

    def _take_turns(self, frames: list[Frame], receipt: list[Receipt], bulk: int, quick: int) -> None:
        turns, room, skipped = self._turns, self._send_room, 0
        bulk, quick = min(bulk, room), min(quick, room)
        turns.begin(bulk)
        while len(frames) < self._max_frames and (turn := turns.next(bulk, quick)):
            stream, allowed = turn
            if self.held != self.unconfirmed and not (allowed := self._most(stream.send, allowed)):
                # Others have bytes that were taken back, and this one may not add to them.
                turns.postpone(stream)
                skipped += 1
                if skipped > len(turns):
                    break
                continue
            skipped = 0
            taken = self._take_data(stream, frames, receipt, allowed)
            turns.took(stream, taken, bulk)
            bulk, quick = bulk - taken, quick - taken
        if turns and self.send_pool.room(self.held) <= 0:
            self.send_pool.call_when_free(self._wake_when_free, self.held)

    def _most(self, send: SendHalf, allowed: int) -> int:
        """How many of ``allowed`` bytes a stream may send: what was taken back, and our room for more."""
        again = send.furthest - send.sent
        return min(allowed, again + max(0, self.send_pool.room(self.held)))

    def _wake_when_free(self) -> None:
        """Wakes the carrier of that moment, which need not be the one that found no room."""
        self.wake()

    def _take_control(self, frames: list[Frame], receipt: list[Receipt], quick: int) -> int:
        early = 0
        # Where nothing may go early opens go bare; who finds the packet full waits for the next one.
        while self._control and (early < quick or quick <= 0) and len(frames) < self._max_frames:
            stream = self._control.popleft()
            opening = stream.open_pending
            if stream in self._unopened:
                early += self._take_open(stream, frames, quick - early)
            elif opening:
                # Without early data: had the first one arrived, this is ignored with all it carries.
                frames.append(_open_frame(stream))
            bits = stream.take_control(frames)
            if opening:
                self.list_stream(stream)
            receipt.append(Receipt(stream, bits, stream.send.sent))
            self.maybe_forget(stream)
        return early

    def _take_open(self, stream: MuxStream, frames: list[Frame], quick: int) -> int:
        del self._unopened[stream]
        stream.number = self._next_number
        self._next_number += 2
        self.streams[stream.number] = stream
        send, early = stream.send, b""
        spare = min(self.limits.max_send_memory - self.unconfirmed, self.send_pool.open_room(self.held))
        room = min(self.peer_early_data, spare, quick)
        if send.ready and room > 0:
            early = b"".join(self._send(send, room))
            stream.on_change()
        frames.append(_open_frame(stream)._replace(early_data=early))
        return len(early)

    def _take_data(self, stream: MuxStream, frames: list[Frame], receipt: list[Receipt], allowed: int) -> int:
        send, bits, taken = stream.send, 0, 0
        if send.ready:
            offset = send.sent
            parts = self._send(send, allowed)
            taken = send.sent - offset
            single = len(parts) == 1
            frames.append(
                Data(stream.number, offset, parts[0]) if single else DataParts(stream.number, offset, parts)
            )
        if send.size == send.sent and not stream.send_reset and not stream.emitted_end():
            bits = END
            stream.emit(bits)
            frames.append(End(stream.number, send.sent))
        if taken or bits:
            receipt.append(Receipt(stream, bits, send.sent))
            if send.room > 0:
                stream.on_change()
        return taken

    def _send(self, send: SendHalf, most: int) -> list[Payload]:
        """The next bytes of a stream, kept and counted until they are confirmed."""
        sent, furthest = send.sent, send.furthest
        parts = send.take(most)
        self.unconfirmed += send.sent - sent
        self.held += send.furthest - furthest
        self.send_pool.used += send.furthest - furthest
        return parts

    def confirmed(self, receipt: list[Receipt]) -> None:
        """The peer has the frames of this receipt."""
        freed = 0
        for stream, bits, sent in receipt:
            freed += stream.send.confirm(sent)
            if bits:
                stream.confirm(bits)
                self.maybe_forget(stream)
        self.unconfirmed -= freed
        self._release(freed)

    def _release(self, freed: int) -> None:
        self.held -= freed
        self.send_pool.release(freed)

    def drop_sending(self, stream: MuxStream) -> None:
        """Nothing more of the stream's data will be sent, or sent again."""
        send = stream.send
        self.unconfirmed -= send.sent - send.confirmed
        self._release(send.held)
        send.drop()

    def take_back(self, receipts: Iterable[list[Receipt]]) -> None:
        """The carrier is lost, and with it all that ``receipts`` carried: it is to be said again."""
        for receipt in receipts:
            for stream, bits, _ in receipt:
                if stream.number in self.streams:
                    stream.take_back(bits)
        for stream in self.streams.values():
            self.unconfirmed -= stream.send.take_back()
        self._queue_anew()

    def _queue_anew(self) -> None:
        """Opens that are to be repeated first, in order; each stream with little data begins as a new one."""
        streams = self.streams.values()
        waiting = dict.fromkeys(self._control)
        waiting.update(dict.fromkeys(stream for stream in streams if stream.control_pending))
        again = [stream for stream in streams if stream.open_pending]
        for stream in again:
            waiting.pop(stream, None)
        self._control = deque([*again, *waiting])
        self.presses = bool(self._control)
        self._turns.clear()
        for stream in streams:
            stream.listed = False
            self.list_stream(stream)
        self._turns.demote()

    def maybe_forget(self, stream: MuxStream) -> None:
        """Forgets a stream that is over."""
        if stream.recv.at_end:
            stream.recv.release()  # our half may stay open for days
        if stream.over and self.streams.pop(stream.number, None) is not None:
            stream.detach()
            if self._opener:
                self._of_user.take(stream.request.user)
            if not self.streams:
                self._on_empty()

    # What arrives.

    def receive(self, frame: Any) -> None:
        """Takes one stream frame in. Raises ``PeerFault`` if it cannot be allowed."""
        if self._failed:
            return
        kind = type(frame)
        if kind is Open:
            self._receive_open(frame)
            return
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise PeerFault(Reason.UNKNOWN_FRAME, f"a {kind.__name__} frame is unknown here")
        stream = self.streams.get(frame.stream)
        if stream is None:
            self._check_late(frame.stream)
            return
        try:
            handler(self, stream, frame)
        except PeerFault as fault:
            if not fault.stream_only:
                raise
            stream.reset(fault.reason, fault.detail)

    def _check_late(self, number: int) -> None:
        used = self._next_number - 2 if self._opener else self._highest_opened
        if number > used or number % 2 == 0:
            raise PeerFault(
                Reason.STREAM_NEVER_OPENED, f"a frame for stream {number}, which was never opened"
            )

    def _receive_open(self, frame: Open) -> None:
        if self._opener or frame.stream % 2 == 0:
            raise PeerFault(Reason.PROTOCOL_ERROR, f"an open of stream {frame.stream} from this end")
        if frame.stream <= self._highest_opened:
            return  # said before
        if len(self.streams) >= 2 * self.limits.max_streams:
            raise PeerFault(Reason.OPEN_FLOOD, "streams are opened faster than refusals are confirmed")
        self._highest_opened = frame.stream
        stream = MuxStream(self, frame._replace(early_data=b""), frame.stream, frame.credit)
        self.streams[frame.stream] = stream
        if len(self.streams) > self.limits.max_streams or self._on_open is None:
            stream.refuse(
                Refused(Reason.TOO_MANY_STREAMS, f"the node allows {self.limits.max_streams} streams")
            )
            return
        try:
            stream.recv.add(0, frame.early_data)
        except PeerFault as fault:
            stream.refuse(Refused(fault.reason, fault.detail))
        else:
            self._on_open(stream)

    def _receive_data(self, stream: MuxStream, frame: Data) -> None:
        recv = stream.recv
        if stream.discarding:
            recv.skip(frame.offset + len(frame.payload))
        elif recv.add(frame.offset, frame.payload):
            stream.on_change()

    def _receive_end(self, stream: MuxStream, frame: End) -> None:
        if stream.discarding:
            stream.recv.size = frame.size
        else:
            stream.recv.end(frame.size)
        stream.on_change()
        self.maybe_forget(stream)

    def _receive_reset(self, stream: MuxStream, frame: Reset) -> None:
        if stream.recv.size is None:
            stream.recv.size = stream.recv.received
            stream.recv.drop()
            stream.recv_reset = stream.discarding = True
            self._broken(stream, self._accepted_reason(frame.reason, Reason.TARGET_RESET), frame.detail)
        self.maybe_forget(stream)

    def _receive_stop(self, stream: MuxStream, frame: Stop) -> None:
        if not stream.send_reset and not stream.emitted_end():
            self._broken(stream, self._accepted_reason(frame.reason, Reason.TARGET_RESET), "")
            stream.give_up_sending()

    def _accepted_reason(self, reason: Reason, otherwise: Reason) -> Reason:
        """Return the peer's reason, or ``otherwise`` if the peer is an agent that may not give it.

        Users, logs and the audit go by reasons: ``done`` is no refusal, and who is let in the server decides.
        """
        return reason if reason in OF_A_STREAM or not self._opener else otherwise

    def _broken(self, stream: MuxStream, reason: Reason, detail: str) -> None:
        if stream.reset_reason is None:
            stream.reset_reason, stream.reset_detail = reason, detail
            if not stream.opened and not self._opener and stream.refusal is None:
                self.opens_cancelled += 1
        stream.on_change()

    def _receive_credit(self, stream: MuxStream, frame: Credit) -> None:
        if frame.limit > stream.send.limit:
            stream.send.limit = frame.limit
            self.list_stream(stream)
            stream.on_change()

    def _receive_opened(self, stream: MuxStream, frame: Opened) -> None:
        if not self._opener:
            raise PeerFault(Reason.PROTOCOL_ERROR, "an answer to an open that this end never makes")
        if not stream.opened:
            stream.opened, stream.address = True, frame.address
            stream.on_opened()
            self._receive_credit(stream, Credit(frame.stream, frame.credit))
            stream.on_change()

    def _receive_refused(self, stream: MuxStream, frame: RefusedFrame) -> None:
        if not self._opener or stream.opened:
            raise PeerFault(Reason.PROTOCOL_ERROR, f"a refusal of stream {frame.stream}, which is open")
        reason, detail = self._accepted_reason(frame.reason, Reason.DIAL_FAILED), frame.detail
        if reason is not frame.reason:
            word = frame.reason.word
            detail = f"the agent refused the stream with the reason {word}, which an agent may not give"
        stream.refusal = Refused(reason, detail)
        stream.discarding = stream.send_reset = stream.recv_reset = True
        self.drop_sending(stream)
        stream.recv.drop()
        stream.on_change()
        self.maybe_forget(stream)

    # The end of everything.

    def fail(self, reason: Reason, detail: str) -> None:
        """The session is gone: every stream is reset at once and forgotten, and nothing moves any more."""
        self._failed = True
        streams = [*self.streams.values(), *self._unopened]
        self.streams.clear()
        self._unopened.clear()
        self._of_user.clear()
        self._control.clear()
        self._turns.clear()
        self.send_pool.forget(self._wake_when_free)
        for stream in streams:
            if stream.reset_reason is None and stream.refusal is None:
                stream.reset_reason, stream.reset_detail = reason, detail
            stream.send_reset = stream.recv_reset = stream.discarding = True
            self.drop_sending(stream)
            stream.recv.drop()
            stream.on_change()
            stream.detach()


def _too_many(user: str, own: int, most: int, free: int) -> str:
    rule = f"one user may have {most}, and more only while more than the user's own number are free"
    cure = "close some, or raise [session] max_streams_per_user of the server"
    return f"{user} has {own} streams on this node and {free} are free: {rule}; {cure}"


def _open_frame(stream: MuxStream) -> Open:
    return stream.request._replace(stream=stream.number, credit=stream.recv.granted)


_HANDLERS: dict[type, Callable[[Mux, MuxStream, Any], None]] = {
    Data: Mux._receive_data,
    Credit: Mux._receive_credit,
    End: Mux._receive_end,
    Opened: Mux._receive_opened,
    RefusedFrame: Mux._receive_refused,
    Reset: Mux._receive_reset,
    Stop: Mux._receive_stop,
}
