"""Join the DATA of one call to gRPC messages. No I/O.

1. A message is a prefix of 5 bytes and its content, which arrives in pieces of any size. The content of a
   message in several pieces is joined once, when it is complete. An array that grows with each piece would
   copy each byte three times.
2. A large piece of at least half its read stays a view, which keeps the whole read in memory. Other pieces
   are copied. So an incomplete message takes about twice its bytes at most.
3. Bulk is many messages of the same size. A message that is no larger than twice an earlier one gets its
   memory at once, and ``space`` lends that memory to the caller. Its content is then not copied at all. A
   client can hold no more memory in this way than by an incomplete message.
"""

from __future__ import annotations

import io

from tunnel_core.http2.frame_budget import FrameBudget
from tunnel_core.limits import KIB
from tunnel_core.wire.frames import Payload

PREFIX_BYTES = 5
_MIN_VIEW = 4 * KIB
"""A smaller piece is copied, because a view and its read are objects that cost more than its bytes."""
MIN_SPACE = 32 * KIB
"""Fewer bytes of a message get no memory beforehand."""


class Http2Error(Exception):
    """Raised when the client violates HTTP/2; the text has the violation."""


class MessageAssembler:
    """The messages of one call. ``max_bytes`` bounds the content of one message."""

    __slots__ = (
        "_budget",
        "_filled",
        "_largest",
        "_max_bytes",
        "_memory",
        "_missing",
        "_parts",
        "_prefix",
        "_view",
    )

    def __init__(self, max_bytes: int, budget: FrameBudget) -> None:
        self._max_bytes = max_bytes
        self._budget = budget
        self._prefix = b""  # the start of a prefix
        self._missing = 0  # bytes of the present message that have not arrived
        self._parts: list[Payload] = []  # the start of the present message
        self._largest = 0  # bytes of the largest complete message
        self._memory: io.BytesIO | None = None  # of the present message, in place of parts
        self._view = memoryview(b"")  # of that memory
        self._filled = 0  # bytes of that memory

    def add(self, piece: memoryview, read_bytes: int, now: float, messages: list[bytes]) -> None:
        """Append the messages that ``piece`` completes. It is a part of a read of ``read_bytes``.

        Raises ``FloodError`` and ``Http2Error``.
        """
        at, size = 0, len(piece)
        while at < size:
            missing = self._missing
            if not missing:
                at = self._add_prefix(piece, at, now, messages)
                continue
            if size - at < missing:
                self._keep(piece[at:], read_bytes)
                return
            rest = piece[at : at + missing]
            at += missing
            if self._memory is not None:
                self._fill(rest, messages)
                continue
            self._missing = 0
            if self._parts:
                messages.append(b"".join((*self._parts, rest)))
                self._parts.clear()
                self._largest = max(self._largest, len(messages[-1]))
            else:
                messages.append(bytes(rest))

    def _add_prefix(self, piece: memoryview, at: int, now: float, messages: list[bytes]) -> int:
        """Read a prefix, or its start, at ``at``. Return the offset behind it."""
        end = at + PREFIX_BYTES - len(self._prefix)
        prefix = self._prefix + bytes(piece[at:end])
        if len(prefix) < PREFIX_BYTES:
            self._prefix = prefix
            return len(piece)
        self._prefix = b""
        size = int.from_bytes(prefix[1:], "big")
        if prefix[0]:
            raise Http2Error("a message is compressed")
        if size > self._max_bytes:
            raise Http2Error(f"a message is larger than max ({size} vs. {self._max_bytes})")
        if not size:
            self._budget.charge_control(0, now)
            messages.append(b"")
        self._missing = size
        if MIN_SPACE <= size <= 2 * self._largest:
            self._memory = io.BytesIO(bytes(size))  # which writes into these bytes
            self._view = self._memory.getbuffer()
            self._filled = 0
        return end

    def space(self, max_bytes: int) -> memoryview | None:
        """Return memory for at most ``max_bytes`` that come next, if the present message has its memory."""
        if self._memory is None:
            return None
        return self._view[self._filled : self._filled + max_bytes]

    def filled(self, size: int, messages: list[bytes]) -> None:
        """Note that ``size`` bytes at the start of ``space`` arrived. Append the message if complete."""
        self._filled += size
        self._missing -= size
        if not self._missing and self._memory is not None:
            self._view.release()
            messages.append(self._memory.getvalue())  # without a copy
            self._memory = None
            self._largest = max(self._largest, self._filled)

    def _fill(self, piece: memoryview, messages: list[bytes]) -> None:
        size = len(piece)
        self._view[self._filled : self._filled + size] = piece
        self.filled(size, messages)

    def _keep(self, piece: memoryview, read_bytes: int) -> None:
        if self._memory is not None:
            self._fill(piece, [])
            return
        self._missing -= len(piece)
        tail = self._parts[-1] if self._parts else None
        if len(piece) >= _MIN_VIEW and len(piece) * 2 >= read_bytes:
            self._parts.append(piece)
        elif isinstance(tail, bytearray):
            tail += piece
        else:
            self._parts.append(bytearray(piece))
