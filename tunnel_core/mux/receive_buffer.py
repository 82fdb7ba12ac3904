"""The receiving half of a stream: bytes that arrived and were not read yet. No I/O, no clock.

Offsets count bytes of the stream from 0 and never go back. The buffer grants credit as its reader consumes
bytes, never as data arrives. So a reader that stops bounds the memory of its stream.
"""

from __future__ import annotations

from collections import deque

from tunnel_core.limits import KIB, Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.reasons import Reason
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Payload

_SMALL = 2 * KIB
"""Chunks below this size are joined, because an object for each would cost more than its content."""
_JOINED = 64 * KIB
"""Joined chunks stay below this size, which bounds the copying."""


class ReceiveBuffer:
    """Bytes that arrived from the peer and were not read yet."""

    __slots__ = (
        "_max_window",
        "_pool",
        "buffered",
        "granted",
        "inbox",
        "initial",
        "received",
        "size",
        "window",
    )

    def __init__(self, limits: Limits, pool: CreditPool) -> None:
        self.inbox: deque[Payload] = deque()
        self.buffered = 0
        self.received = 0
        self.size: int | None = None  # final size once the peer announced it
        self.window = self.initial = limits.initial_credit
        self.granted = self.window  # absolute offset that the peer may send up to
        self._max_window = limits.max_credit
        self._pool = pool

    def add(self, offset: int, payload: Payload) -> bool:
        """Store data that starts at ``offset``. Return False if all of it had arrived before.

        Raises ``ProtocolError`` for a gap, and for data beyond the granted credit or the announced end.
        """
        end = offset + len(payload)
        if offset > self.received or end > self.granted or self.size is not None:
            self._check(offset, end)
        if end <= self.received:
            return False
        if offset < self.received:
            payload = payload[self.received - offset :]
        self.received = end
        self.buffered += len(payload)
        if self.inbox and len(payload) < _SMALL:
            self._join(payload)
        else:
            self.inbox.append(payload)
        return True

    def _check(self, offset: int, end: int) -> None:
        if offset > self.received:
            raise ProtocolError(Reason.DATA_GAP, f"data at offset {offset}, expected {self.received}")
        if end > self.granted:
            detail = f"data up to offset {end}, granted {self.granted}"
            raise ProtocolError(Reason.CREDIT_OVERRUN, detail, stream_only=True)
        if self.size is not None and end > self.size:
            detail = f"data up to offset {end} after an end at {self.size}"
            raise ProtocolError(Reason.DATA_AFTER_END, detail, stream_only=True)

    def _join(self, payload: Payload) -> None:
        """Append a small chunk to the last unread one."""
        tail = self.inbox[-1]
        if isinstance(tail, bytearray) and len(tail) < _JOINED:
            tail += payload
        else:
            self.inbox.append(bytearray(payload))

    def end(self, size: int) -> None:
        """Record that the peer sends ``size`` bytes in all.

        Raises ``ProtocolError`` if that contradicts the data received or an earlier end.
        """
        if size < self.received or (self.size is not None and self.size != size):
            detail = f"an end at {size} after {self.received} bytes"
            raise ProtocolError(Reason.DATA_AFTER_END, detail, stream_only=True)
        if size > self.received:
            raise ProtocolError(Reason.DATA_GAP, f"an end at {size}, received {self.received}")
        self.size = size

    @property
    def at_end(self) -> bool:
        """Whether the peer ended its half and all its bytes were read."""
        return self.size is not None and not self.buffered

    @property
    def outstanding(self) -> int:
        """Bytes granted and not consumed: the most that this buffer may come to hold."""
        return self.granted - self.received + self.buffered

    def take(self, max_bytes: int) -> Payload:
        """Return up to ``max_bytes`` that arrived. Call only while bytes are buffered."""
        payload = self.inbox.popleft()
        if len(payload) > max_bytes:
            view = memoryview(payload)
            self.inbox.appendleft(view[max_bytes:])
            payload = view[:max_bytes]
        self.buffered -= len(payload)
        return payload

    def maybe_grant(self) -> bool:
        """Raise ``granted`` if the reader consumed a quarter of its window. Return whether it was raised."""
        new_limit = self.received - self.buffered + self.window
        if self.size is not None or (new_limit - self.granted) * 4 < self.window:
            return False
        extra = min(self.window, self._max_window - self.window)
        if extra > 0 and self.buffered * 4 <= self.window and self._pool.try_grow(extra):
            new_limit += extra
            self.window += extra
        self.granted = new_limit
        return True

    def drop(self) -> None:
        """Discard unread bytes and return grown credit, because no reader is left."""
        self.inbox.clear()
        self.buffered = 0
        self.release()

    def skip(self, end: int) -> None:
        """Discard data up to offset ``end``, because no reader is left.

        Raises ``ProtocolError`` if ``end`` is beyond the granted credit.
        """
        if end > self.granted:
            # Ends the session, not the stream: this end stopped the stream already, and the peer goes on.
            raise ProtocolError(Reason.CREDIT_OVERRUN, f"data up to offset {end}, granted {self.granted}")
        self.received = max(self.received, end)

    def release(self) -> None:
        """Return the grown part of the window to the pool, because no more bytes will be stored."""
        if self.window > self.initial:
            self._pool.release(self.window - self.initial)
            self.window = self.initial
