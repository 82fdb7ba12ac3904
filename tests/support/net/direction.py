"""One direction of an emulated link: a drop-tail queue, a rate, a delay, and cuts. No I/O, no clock.

1. An offered frame waits in a FIFO until the link has sent every frame before it. Each takes its size
   divided by the rate. After that the frame travels for the delay, and is then due.
2. Times are computed when a frame leaves the FIFO and not when it enters. So a change of the rate also
   applies to waiting frames, as it does when a modem falls back.
3. A frame is dropped when the FIFO has no room for it, whatever its kind. One frame always has room.
4. While the link is cut every frame is lost, waiting and travelling ones included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """The unit that moves: one packet, or several that the kernel has not separated yet."""

    content: bytes
    wire_bytes: int
    packets: int = 1


@dataclass
class Counters:
    """Counts of all offered frames: delivered, dropped for lack of room, lost by a cut."""

    bytes: int = 0
    packets: int = 0
    dropped: int = 0
    cut: int = 0


class Direction:
    """One direction. Callers pass the time, which must never decrease."""

    def __init__(self) -> None:
        self.counters = Counters()
        self._seconds_per_byte = 0.0
        self._delay_seconds = 0.0
        self._queue_bytes: int | None = None
        self._is_cut = False
        self._waiting: deque[tuple[float, Frame]] = deque()
        self._waiting_bytes = 0
        self._free_at = 0.0
        self._flying: deque[tuple[float, Frame]] = deque()

    def set(self, now: float, rate: float | None, delay_seconds: float, queue_bytes: int | None) -> None:
        """Set the terms. ``rate`` is in bytes per second, None for no limit. Excess frames are dropped."""
        self._serve(now)
        self._seconds_per_byte = 1 / rate if rate else 0.0
        self._delay_seconds = delay_seconds
        self._queue_bytes = queue_bytes
        while queue_bytes is not None and self._waiting_bytes > queue_bytes and len(self._waiting) > 1:
            frame = self._waiting.pop()[1]
            self._waiting_bytes -= frame.wire_bytes
            self.counters.dropped += frame.packets

    def cut(self) -> None:
        self._is_cut = True
        for frames in (self._waiting, self._flying):
            self.counters.cut += sum(frame.packets for _, frame in frames)
            frames.clear()
        self._waiting_bytes = 0

    def restore(self) -> None:
        self._is_cut = False

    def offer(self, frame: Frame, now: float) -> None:
        if self._is_cut:
            self.counters.cut += frame.packets
            return
        self._serve(now)
        if not self._has_room(frame):
            self.counters.dropped += frame.packets
            return
        self._waiting.append((now, frame))
        self._waiting_bytes += frame.wire_bytes

    def due(self, now: float) -> Iterator[Frame]:
        """Remove and yield the frames that have arrived at the other end by ``now``."""
        self._serve(now)
        while self._flying and self._flying[0][0] <= now:
            frame = self._flying.popleft()[1]
            self.counters.bytes += frame.wire_bytes
            self.counters.packets += frame.packets
            yield frame

    def next_due(self) -> float | None:
        """Return when ``due`` has a frame; None while no frame is on the way."""
        if self._flying:
            return self._flying[0][0]
        return self._head_leaves() + self._delay_seconds if self._waiting else None

    def _has_room(self, frame: Frame) -> bool:
        limit = self._queue_bytes
        return limit is None or not self._waiting or self._waiting_bytes + frame.wire_bytes <= limit

    def _head_leaves(self) -> float:
        came, frame = self._waiting[0]
        return max(came, self._free_at) + frame.wire_bytes * self._seconds_per_byte

    def _serve(self, now: float) -> None:
        while self._waiting and (leaves := self._head_leaves()) <= now:
            frame = self._waiting.popleft()[1]
            self._waiting_bytes -= frame.wire_bytes
            self._free_at = leaves
            # A shorter delay lets no frame overtake another.
            earliest = self._flying[-1][0] if self._flying else 0.0
            self._flying.append((max(earliest, leaves + self._delay_seconds), frame))
