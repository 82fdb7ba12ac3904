"""The receiving half of a stream: bytes that arrived, until the reader takes them. No I/O, no clock.

Offsets count bytes of the stream from 0 and never go back. The half grants credit as its reader consumes,
never as data arrives, so a reader that stops bounds the memory of its stream.
"""

from __future__ import annotations

from collections import deque

from tunnel_core.limits import KIB, Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.reasons import Reason
from tunnel_core.wire.errors import ProtocolError
from tunnel_core.wire.frames import Payload

_SMALL = 2 * KIB
"""Chunks below this size are joined: an object of its own would cost more than what it holds."""
_JOINED = 64 * KIB
"""Joined chunks stay below this size: copying is for small things."""


class ReceiveBuffer:
    """Bytes that arrived from the peer, until the reader takes them."""

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
        """Takes data in; False if it had all arrived before. Raises ``ProtocolError``."""
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
        """Store a small chunk behind others that nobody has read yet."""
        tail = self.inbox[-1]
        if isinstance(tail, bytearray) and len(tail) < _JOINED:
            tail += payload
        else:
            self.inbox.append(bytearray(payload))

    def end(self, size: int) -> None:
        """The peer will send ``size`` bytes in all. Raises ``ProtocolError`` if that contradicts it."""
        if size < self.received or (self.size is not None and self.size != size):
            detail = f"an end at {size} after {self.received} bytes"
            raise ProtocolError(Reason.DATA_AFTER_END, detail, stream_only=True)
        if size > self.received:
            raise ProtocolError(Reason.DATA_GAP, f"an end at {size}, received {self.received}")
        self.size = size

    @property
    def at_end(self) -> bool:
        """Whether everything the peer will ever send was read."""
        return self.size is not None and not self.buffered

    @property
    def outstanding(self) -> int:
        """Bytes granted and not consumed: what this half may come to hold."""
        return self.granted - self.received + self.buffered

    def take(self, max_bytes: int) -> Payload:
        """Up to ``max_bytes`` of what arrived; call only with something buffered."""
        payload = self.inbox.popleft()
        if len(payload) > max_bytes:
            view = memoryview(payload)
            self.inbox.appendleft(view[max_bytes:])
            payload = view[:max_bytes]
        self.buffered -= len(payload)
        return payload

    def maybe_grant(self) -> bool:
        """Raises ``granted`` if the reader consumed a quarter of its window; says whether it did."""
        goal = self.received - self.buffered + self.window
        if self.size is not None or (goal - self.granted) * 4 < self.window:
            return False
        extra = min(self.window, self._max_window - self.window)
        if extra > 0 and self.buffered * 4 <= self.window and self._pool.try_grow(extra):
            goal += extra
            self.window += extra
        self.granted = goal
        return True

    def drop(self) -> None:
        """Forgets what was not read; the reader is gone, and what still comes is not kept."""
        self.inbox.clear()
        self.buffered = 0
        self.release()

    def skip(self, end: int) -> None:
        """Data before ``end`` came for a reader that is gone. Raises ``ProtocolError`` beyond the grant."""
        if end > self.granted:
            # Not the stream's alone: it was stopped already, and the peer goes on.
            raise ProtocolError(Reason.CREDIT_OVERRUN, f"data up to offset {end}, granted {self.granted}")
        self.received = max(self.received, end)

    def release(self) -> None:
        """Gives the grown part of the window back to the pool: nothing more will be held."""
        if self.window > self.initial:
            self._pool.release(self.window - self.initial)
            self.window = self.initial
