"""Meter TLS records, so that one step never handles more than a few. No I/O.

1. OpenSSL handles all of its input before it returns. A record costs the same with 16 KiB of data or none. A
   key update (RFC 8446 section 4.6.3) costs twenty times as much and carries no data. So 64 KiB of key
   updates take 0.15 s, and a peer may send them without end.
2. :class:`RecordMeter` gets the bytes that arrive, and returns pieces of at most ``MAX_RECORDS`` records. The
   heads of records are never encrypted.
3. A peer that sends more records without data than any honest peer does is at fault.
"""

from __future__ import annotations

MAX_RECORDS = 32
"""Records of one step: 512 KiB of bulk, or 2 ms of key updates."""
MAX_EMPTY_RECORDS = 64
"""TLS records in a row without data. A handshake has about ten, and a key update comes once in 2^24
records."""
MAX_ANSWER_BYTES = 16 * 1024
"""Bytes of answers to the peer's key updates while no data is sent."""
_HEAD_BYTES = 5


class RecordMeter:
    """The received records of one connection, from its first byte."""

    __slots__ = ("_arrived", "_head", "_record_left", "empty_records", "has_more", "whole_records")

    def __init__(self) -> None:
        self.has_more = False
        """Whether ``take`` has bytes."""
        self._arrived = memoryview(b"")  # and not taken yet
        self._record_left = 0  # missing bytes of the present record
        self._head = b""  # the start of a head
        self.empty_records = 0
        """Records in a row without data. The caller sets it to 0 when it reads data."""
        self.whole_records = 0
        """Complete records that ``take`` returned. The caller subtracts the records that it has read."""

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes that arrived. Do not call this while ``has_more``."""
        self._arrived = memoryview(data)
        self.has_more = True

    def copy_rest(self) -> None:
        """Copy the bytes that wait, because the caller will change the memory that ``put`` got."""
        self._arrived = memoryview(bytes(self._arrived))

    def take(self) -> memoryview:
        """Return the next piece, of at most ``MAX_RECORDS`` records."""
        data, at, count = self._arrived, self._record_left, 0
        size, was_cut = len(data), at > 0
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
        self.empty_records += count
        end = min(at, size)
        self._record_left = at - end
        self.whole_records += count + was_cut - (at > end)
        self._arrived = data[end:]
        self.has_more = end < size
        return data[:end]
