"""Meters TLS records, so that one step never handles more than a few. No I/O.

1. OpenSSL handles all that it was given before it returns. A record costs the same whether it carries 16 KiB
   or nothing, and a key update (RFC 8446 section 4.6.3) costs twenty times as much and shows no data. So
   64 KiB of key updates take 0.15 s, and a peer may send them without end.
2. :class:`RecordMeter` is given what arrives, and returns pieces of at most ``MAX_RECORDS`` records each. The
   heads of records are never encrypted.
3. A peer whose records bring no data for so long that no honest one does it is at fault.
"""

from __future__ import annotations

MAX_RECORDS = 32
"""In one step: 512 KiB in bulk, 2 ms of key updates."""
MAX_BARREN_RECORDS = 64
"""TLS records in a row without data. A handshake has about ten, and a key update comes once in 2^24
records."""
MOST_ANSWERS = 16 * 1024
"""Bytes that answer the peer's key updates while nothing else is sent."""
_HEAD_BYTES = 5


class RecordMeter:
    """One direction of one connection, from its first byte."""

    __slots__ = ("_barren", "_head", "_held", "_left")

    def __init__(self) -> None:
        self._held = memoryview(b"")  # arrived, and not taken yet
        self._left = 0  # bytes of the record under way
        self._head = b""  # the begin of a head
        self._barren = 0

    @property
    def has_more(self) -> bool:
        """Whether ``take`` has something."""
        return bool(self._held)

    @property
    def is_barren(self) -> bool:
        """Whether too many records brought nothing."""
        return self._barren > MAX_BARREN_RECORDS

    def put(self, data: bytes | bytearray) -> None:
        """Add what arrived; not while ``has_more``."""
        self._held = memoryview(data)

    def take(self) -> memoryview:
        """Return the next piece."""
        end = self._measure()
        piece, self._held = self._held[:end], self._held[end:]
        return piece

    def note_data(self) -> None:
        """Some record brought data."""
        self._barren = 0

    def _measure(self) -> int:
        """Return where the piece ends that has at most so many heads."""
        data, at, count = self._held, self._left, 0
        size = len(data)
        while at < size and count < MAX_RECORDS:
            if at + _HEAD_BYTES <= size and not self._head:
                at += _HEAD_BYTES + (data[at + 3] << 8 | data[at + 4])
                count += 1
                continue
            missing = _HEAD_BYTES - len(self._head)
            self._head += bytes(data[at : at + missing])
            at += missing
            if len(self._head) < _HEAD_BYTES:
                at = size
                break
            at += self._head[3] << 8 | self._head[4]
            self._head = b""
            count += 1
        self._barren += count
        end = min(at, size)
        self._left = at - end
        return end
