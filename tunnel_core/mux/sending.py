"""What the streams of one session have to send, and what they sent and must keep. No I/O, no clock.

1. Control is state, not a queue: a stream has a set of pending control bits and one place in the
   control queue, however often something changes before the carrier takes a packet.
2. Control and ends enter a packet first, always. Then data as ``scheduler.py`` decides, within two budgets:
   what the flight limit leaves to bulk, and what it leaves to quick bytes, early data among them.
3. ``take`` returns frames and a receipt. ``acked(receipt)`` frees what the frames carried.
4. ``take_back`` follows the loss of a carrier. It makes what its receipts carried pending again: data
   returns to the front of its queue, control bits to the control queue, opens first and in the order of
   their numbers. Nothing of a stream is sent before its open was. Then the turns go on as always.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from tunnel_core.limits import Limits
from tunnel_core.mux.credit import SendPool
from tunnel_core.mux.scheduler import StreamScheduler
from tunnel_core.mux.send_buffer import SendBuffer
from tunnel_core.mux.stream_state import END, OPEN, Receipt, StreamState
from tunnel_core.wire.frames import Data, DataParts, End, Frame, Payload

_FRAME_RESERVE = 16
"""Frames that a packet may get after the last look at their number: of one stream and of the session."""
_END_WAITS_SECONDS = 0.002
"""Time for which the end of a stream waits for company: the next open, or the last answer. Any real round
trip is longer."""

_new = tuple.__new__  # half the price of a named tuple's own constructor


def _nothing() -> None:
    """Wake nobody: there is no carrier."""


class Sending:
    """The sending part of a ``Mux``: control, ends and data of its streams, until the peer confirms them.

    ``wake`` and ``wake_for_data`` are the carrier's, and change with it. ``wake_later`` is called when there
    is something to send that may wait for company for so many seconds.
    """

    def __init__(self, limits: Limits, send_pool: SendPool, wake_later: Callable[[float], None]) -> None:
        self.limits = limits
        self.wake: Callable[[], None] = _nothing  # there is something to send
        self.wake_for_data: Callable[[], None] = _nothing  # there is, and somebody may wait for it
        self._wake_later = wake_later
        self.unconfirmed = 0  # bytes of all streams on their way over the carrier
        self.retained_bytes = 0  # those, and what was taken back: our part of ``send_pool``
        self.urgent = False  # some control is to be sent at once, whatever else there is
        self.peer_early_data = limits.early_data
        self.send_pool = send_pool
        self.streams: dict[int, StreamState] = {}
        self._max_frames = limits.max_frames_per_packet - _FRAME_RESERVE
        self._control: deque[StreamState] = deque()
        self._scheduler = StreamScheduler()
        self._failed = False

    # What waits.

    def queue_control(self, stream: StreamState, wait_seconds: float) -> None:
        """Have the stream's pending control sent, at once or within so many seconds."""
        if not stream.control_queued:
            stream.control_queued = True
            if not self._failed:
                self._control.append(stream)
        if wait_seconds:
            self._wake_later(wait_seconds)
        else:
            self.urgent = True
            self.wake()

    def list_stream(self, stream: StreamState, *, is_end: bool = False) -> None:
        """Give the stream a turn if it has something to send and stands in no list.

        A mere end waits a moment for company: who closes one connection often opens the next.
        """
        if not stream.number or stream.pending & OPEN or not stream.wants_turn:
            return
        if not stream.send.queued:
            self._scheduler.ends[stream] = None
            if is_end:
                self._wake_later(_END_WAITS_SECONDS)
        elif not stream.listed:
            self._scheduler.add(stream)
            self.wake_for_data()

    @property
    def has_work(self) -> bool:
        """Whether there is something to send, once there is room for it."""
        turns = self._scheduler
        return bool(self._control or turns.ends or turns.new or turns.old)

    @property
    def has_data(self) -> bool:
        """Whether some stream has data that credit and memory let it send."""
        turns = self._scheduler
        return bool(turns.new or turns.old) and self._room() > 0

    def may_send(self, bulk: int, quick: int) -> bool:
        """Whether these budgets let any stream send data that memory allows."""
        return self._scheduler.can_send(bulk, quick) and self._room() > 0

    def _room(self) -> int:
        """Bytes that may leave now. What was taken back has its place in the pool already."""
        unconfirmed, held = self.unconfirmed, self.retained_bytes
        shared = self.send_pool.room(held)
        if held != unconfirmed:
            shared = max(0, shared) + held - unconfirmed
        return min(self.limits.max_send_memory - unconfirmed, shared)

    # What enters the next packet.

    def take(self, bulk: int, quick: int) -> tuple[list[Frame], list[Receipt]]:
        """Frames for one packet, and their receipt. Control and ends always go.

        ``quick`` bounds the content that is early or of streams with little queued, ``bulk`` all content.
        """
        frames: list[Frame] = []
        receipt: list[Receipt] = []
        if self._control:
            early = self._take_control(frames, receipt, quick)
            bulk, quick = bulk - early, quick - early
        self.urgent = bool(self._control)
        turns = self._scheduler
        while turns.ends and len(frames) < self._max_frames:
            self._take_data(turns.ends.popitem()[0], frames, receipt, 0)
        if turns.new or turns.old:
            self._take_turns(frames, receipt, bulk, quick)
        return frames, receipt

    def _take_turns(self, frames: list[Frame], receipt: list[Receipt], bulk: int, quick: int) -> None:
        turns, room, skipped = self._scheduler, self._room(), 0
        bulk, quick = min(bulk, room), min(quick, room)
        turns.start_packet(bulk)
        while (turns.new or turns.old) and len(frames) < self._max_frames:
            turn = turns.next(bulk, quick)
            if turn is None:
                break
            stream, allowed = turn
            if self.retained_bytes != self.unconfirmed and not (allowed := self._most(stream.send, allowed)):
                # Others have bytes that were taken back, and this one may not add to them.
                turns.postpone(stream)
                skipped += 1
                if skipped > len(turns):
                    break
                continue
            skipped = 0
            taken = self._take_data(stream, frames, receipt, allowed)
            turns.charge(stream, taken, bulk)
            bulk, quick = bulk - taken, quick - taken
        if (turns.new or turns.old) and self.send_pool.room(self.retained_bytes) <= 0:
            self.send_pool.call_when_free(self._wake_when_free, self.retained_bytes)

    def _most(self, send: SendBuffer, allowed: int) -> int:
        """How many of ``allowed`` bytes a stream may send: what was taken back, and our room for more."""
        again = send.max_sent - send.sent
        return min(allowed, again + max(0, self.send_pool.room(self.retained_bytes)))

    def _wake_when_free(self) -> None:
        """Wakes the carrier of that moment, which need not be the one that found no room."""
        self.wake()

    def _take_control(self, frames: list[Frame], receipt: list[Receipt], quick: int) -> int:
        early = 0
        # Where nothing may go early opens go bare; who finds the packet full waits for the next one.
        while self._control and (early < quick or quick <= 0) and len(frames) < self._max_frames:
            stream = self._control.popleft()
            opening = stream.open_pending
            if opening and not stream.number:
                early += self._take_open(stream, frames, quick - early)
            elif opening:
                # Without early data: had the first one arrived, this is ignored with all it carries.
                frames.append(stream.open_frame(b""))
            bits = stream.take_control(frames)
            if opening:
                self.list_stream(stream)
            receipt.append((stream, bits, stream.send.sent))
            stream.mux.maybe_forget(stream)
        return early

    def _take_open(self, stream: StreamState, frames: list[Frame], quick: int) -> int:
        stream.mux.give_number(stream)
        early = b""
        spare = min(
            self.limits.max_send_memory - self.unconfirmed, self.send_pool.open_room(self.retained_bytes)
        )
        room = min(self.peer_early_data, spare, quick)
        if stream.send.ready and room > 0:
            early = b"".join(self._send(stream, room))
        frames.append(stream.open_frame(early))
        return len(early)

    def _take_data(self, stream: StreamState, frames: list[Frame], receipt: list[Receipt], most: int) -> int:
        send, bits, taken = stream.send, 0, 0
        if most and send.queued and send.sent < send.limit:
            offset = send.sent
            parts = self._send(stream, most)
            taken = send.sent - offset
            if len(parts) == 1:
                frames.append(_new(Data, (stream.number, offset, parts[0])))
            else:
                frames.append(DataParts(stream.number, offset, parts))
        if send.size == send.sent and not stream.send_reset and not stream.emitted & END:
            bits = END
            stream.emitted |= END
            frames.append(End(stream.number, send.sent))
        if taken or bits:
            receipt.append((stream, bits, send.sent))
        return taken

    def _send(self, stream: StreamState, most: int) -> list[Payload]:
        """The next bytes of a stream, kept and counted until they are confirmed."""
        send = stream.send
        sent, max_sent = send.sent, send.max_sent
        parts = send.take(most)
        fresh = send.max_sent - max_sent
        self.unconfirmed += send.sent - sent
        self.retained_bytes += fresh
        self.send_pool.used += fresh
        if stream.awaits_room and send.room > 0:
            stream.on_writable()
        return parts

    # What was sent.

    def acked(self, receipt: list[Receipt]) -> None:
        """The peer has the frames of this receipt."""
        freed = 0
        for stream, bits, sent in receipt:
            freed += stream.send.confirm(sent)
            if bits:
                stream.confirm(bits)
                stream.mux.maybe_forget(stream)
        if freed:
            self.unconfirmed -= freed
            self.retained_bytes -= freed
            self.send_pool.release(freed)

    def drop_sending(self, stream: StreamState) -> None:
        """Nothing more of the stream's data will be sent, or sent again."""
        send = stream.send
        held = send.retained_bytes
        self.unconfirmed -= send.sent - send.acked
        self.retained_bytes -= held
        self.send_pool.release(held)
        send.drop()

    def take_back(self, receipts: Iterable[list[Receipt]]) -> None:
        """The carrier is lost, and with it all that ``receipts`` carried: it is to be sent again."""
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
        self.urgent = bool(self._control)
        self._scheduler.clear()
        for stream in streams:
            stream.listed = False
            self.list_stream(stream)
        self._scheduler.demote()

    def stop_sending(self) -> None:
        """The session is gone: nothing moves any more."""
        self._failed = True
        self._control.clear()
        self._scheduler.clear()
        self.send_pool.forget(self._wake_when_free)
