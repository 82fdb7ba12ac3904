"""Choose the frames of the next packet, and retain sent bytes until their acknowledgement. No I/O, no clock.

1. Control is state, not a queue. A stream has a set of pending control bits and one place in the control
   queue, however often its state changes before the carrier takes a packet.
2. Control and ends always enter a packet first. Then comes data in the order of ``scheduler.py``, within two
   budgets of the in-flight limit: one for bulk, one for priority bytes, early data among them.
3. ``take`` returns frames and a receipt. ``acked(receipt)`` frees the content of these frames.
4. ``take_back`` follows the loss of a carrier. It makes the content of its receipts pending again. Data
   returns to the front of its queue, control bits to the control queue. Opens come first, in the order of
   their numbers, because no frame of a stream may precede its open. Then the usual order applies.
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
"""Frames that a packet may get after the last check of their number: of one stream and of the session."""
_END_WAITS_SECONDS = 0.002
"""Time for which the end of a stream waits for company: the next open, or the last answer. Any real round
trip is longer."""

_new = tuple.__new__  # half the price of a named tuple's own constructor


def _do_nothing() -> None:
    """Stands in for a carrier's wake while there is no carrier."""


class Sending:
    """The sending part of a ``Mux``: control, ends and data of its streams, until the peer acknowledges them.

    ``wake`` and ``wake_for_data`` belong to the carrier and change with it. ``wake_later`` is called with the
    seconds that a new frame may wait for others to share its packet.
    """

    def __init__(self, limits: Limits, send_pool: SendPool, wake_later: Callable[[float], None]) -> None:
        self.limits = limits
        # Called when a frame is ready to send; the second when it is data, which a user may wait for.
        self.wake: Callable[[], None] = _do_nothing
        self.wake_for_data: Callable[[], None] = _do_nothing
        self._wake_later = wake_later
        self.unacked_bytes = 0  # bytes of all streams sent on the carrier and not acknowledged
        self.retained_bytes = 0  # these and the bytes taken back: this session's part of ``send_pool``
        self.urgent = False  # some control must be sent at once
        self.peer_early_data = limits.early_data
        self.send_pool = send_pool
        self.streams: dict[int, StreamState] = {}
        self._max_frames = limits.max_frames_per_packet - _FRAME_RESERVE
        self._control: deque[StreamState] = deque()
        self._scheduler = StreamScheduler()
        self._failed = False

    # Queueing.

    def queue_control(self, stream: StreamState, wait_seconds: float) -> None:
        """Queue the stream's pending control, to be sent at once or within ``wait_seconds``."""
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
        """Give the stream a turn if it has data or its end to send and is in no list.

        An end without data waits a moment, because a client that closes a connection often opens the next
        one.
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
        """Whether there are frames to send, once there is room for them."""
        scheduler = self._scheduler
        return bool(self._control or scheduler.ends or scheduler.new or scheduler.old)

    @property
    def has_data(self) -> bool:
        """Whether a stream has data that credit and memory allow to send."""
        scheduler = self._scheduler
        return bool(scheduler.new or scheduler.old) and self._room() > 0

    def may_send(self, bulk: int, priority: int) -> bool:
        """Whether these budgets, in bytes, and memory let any stream send data."""
        return self._scheduler.can_send(bulk, priority) and self._room() > 0

    def _room(self) -> int:
        """Bytes that may leave now. Bytes that were taken back have their room in the pool already."""
        unacked, retained = self.unacked_bytes, self.retained_bytes
        shared = self.send_pool.room(retained)
        if retained != unacked:
            shared = max(0, shared) + retained - unacked
        return min(self.limits.max_send_memory - unacked, shared)

    # Building the next packet.

    def take(self, bulk: int, priority: int) -> tuple[list[Frame], list[Receipt]]:
        """Return the frames of one packet, and their receipt. Control and ends always enter it.

        ``priority`` bounds early data and the data of streams with little queued, in bytes; ``bulk`` bounds
        all data.
        """
        frames: list[Frame] = []
        receipt: list[Receipt] = []
        if self._control:
            early = self._take_control(frames, receipt, priority)
            bulk, priority = bulk - early, priority - early
        self.urgent = bool(self._control)
        scheduler = self._scheduler
        while scheduler.ends and len(frames) < self._max_frames:
            self._take_data(scheduler.ends.popitem()[0], frames, receipt, 0)
        if scheduler.new or scheduler.old:
            self._take_turns(frames, receipt, bulk, priority)
        return frames, receipt

    def _take_turns(self, frames: list[Frame], receipt: list[Receipt], bulk: int, priority: int) -> None:
        scheduler, room, skipped = self._scheduler, self._room(), 0
        bulk, priority = min(bulk, room), min(priority, room)
        scheduler.start_packet(bulk)
        while (scheduler.new or scheduler.old) and len(frames) < self._max_frames:
            turn = scheduler.next(bulk, priority)
            if turn is None:
                break
            stream, allowed = turn
            if self.retained_bytes != self.unacked_bytes and not (
                allowed := self._limit_to_pool(stream.send, allowed)
            ):
                # Other streams have bytes that were taken back, and this stream may add none now.
                scheduler.postpone(stream)
                skipped += 1
                if skipped > len(scheduler):
                    break
                continue
            skipped = 0
            taken = self._take_data(stream, frames, receipt, allowed)
            scheduler.charge(stream, taken, bulk)
            bulk, priority = bulk - taken, priority - taken
        if (scheduler.new or scheduler.old) and self.send_pool.room(self.retained_bytes) <= 0:
            self.send_pool.call_when_free(self._wake_when_free, self.retained_bytes)

    def _limit_to_pool(self, send: SendBuffer, allowed: int) -> int:
        """Limit ``allowed`` bytes of a stream to retransmitted ones, and new ones that fit in the pool."""
        resent = send.max_sent - send.sent
        return min(allowed, resent + max(0, self.send_pool.room(self.retained_bytes)))

    def _wake_when_free(self) -> None:
        """Wake the present carrier, which may not be the one that found no room."""
        self.wake()

    def _take_control(self, frames: list[Frame], receipt: list[Receipt], priority: int) -> int:
        early = 0
        # Without a budget opens carry no early data; opens that find the budget used wait for the next
        # packet.
        while self._control and (early < priority or priority <= 0) and len(frames) < self._max_frames:
            stream = self._control.popleft()
            opening = stream.pending & OPEN
            if opening and not stream.number:
                early += self._take_open(stream, frames, priority - early)
            elif opening:
                # Without early data, because the peer ignores a repeated open with all its content.
                frames.append(stream.open_frame(b""))
            bits = stream.take_control(frames)
            if opening and (stream.send.queued or stream.send.size is not None):
                self.list_stream(stream)
            receipt.append((stream, bits, stream.send.sent))
            if stream.done or stream.refusal is not None:
                stream.mux.maybe_forget(stream)
        return early

    def _take_open(self, stream: StreamState, frames: list[Frame], priority: int) -> int:
        stream.mux.assign_number(stream)
        early = b""
        spare = min(
            self.limits.max_send_memory - self.unacked_bytes, self.send_pool.open_room(self.retained_bytes)
        )
        room = min(self.peer_early_data, spare, priority)
        send = stream.send
        if room > 0 and send.queued and send.sent < send.limit:
            early = b"".join(self._send(stream, room))
        frames.append(stream.open_frame(early))
        return len(early)

    def _take_data(
        self, stream: StreamState, frames: list[Frame], receipt: list[Receipt], max_bytes: int
    ) -> int:
        send, bits, taken = stream.send, 0, 0
        if max_bytes and send.queued and send.sent < send.limit:
            offset = send.sent
            parts = self._send(stream, max_bytes)
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

    def _send(self, stream: StreamState, max_bytes: int) -> list[Payload]:
        """Return the next bytes of a stream, and count them as unacknowledged."""
        send = stream.send
        sent, max_sent = send.sent, send.max_sent
        parts = send.take(max_bytes)
        first_sent = send.max_sent - max_sent
        self.unacked_bytes += send.sent - sent
        self.retained_bytes += first_sent
        self.send_pool.used += first_sent
        if stream.awaits_room and send.room > 0:
            stream.on_writable()
        return parts

    # After sending.

    def acked(self, receipt: list[Receipt]) -> None:
        """Record that the peer has the frames of this receipt."""
        freed = 0
        for stream, bits, sent in receipt:
            freed += stream.send.ack(sent)
            if bits:
                stream.done |= bits
                stream.mux.maybe_forget(stream)
        if freed:
            self.unacked_bytes -= freed
            self.retained_bytes -= freed
            self.send_pool.release(freed)

    def drop_sending(self, stream: StreamState) -> None:
        """Discard the stream's data, sent or not; none of it is transmitted any more."""
        send = stream.send
        retained = send.retained_bytes
        self.unacked_bytes -= send.sent - send.acked
        self.retained_bytes -= retained
        self.send_pool.release(retained)
        send.drop()

    def take_back(self, receipts: Iterable[list[Receipt]]) -> None:
        """Make the content of ``receipts`` pending again, because their carrier is lost."""
        for receipt in receipts:
            for stream, bits, _ in receipt:
                if stream.number in self.streams:
                    stream.take_back(bits)
        for stream in self.streams.values():
            self.unacked_bytes -= stream.send.take_back()
        self._rebuild_queues()

    def _rebuild_queues(self) -> None:
        """Queue repeated opens first, in order. Streams with little data start as new, bulk as old."""
        streams = self.streams.values()
        waiting = dict.fromkeys(self._control)
        waiting.update(dict.fromkeys(stream for stream in streams if stream.control_pending))
        reopening = [stream for stream in streams if stream.open_pending]
        for stream in reopening:
            waiting.pop(stream, None)
        self._control = deque([*reopening, *waiting])
        self.urgent = bool(self._control)
        self._scheduler.clear()
        for stream in streams:
            stream.listed = False
            self.list_stream(stream)
        self._scheduler.demote()

    def stop_sending(self) -> None:
        """Drop all queues for good, because the session has ended."""
        self._failed = True
        self._control.clear()
        self._scheduler.clear()
        self.send_pool.forget(self._wake_when_free)
