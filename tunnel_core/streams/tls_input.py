"""Decrypt what one TLS connection receives. No I/O.

1. OpenSSL returns one record of at most 16 KiB for each call, so bulk is a call for each record. The loop
   that makes these calls writes the records of one read behind each other into memory of the caller. Joining
   them afterwards would copy each byte once more.
2. OpenSSL reports by an exception that it needs more input, and that costs half as much as a record.
   :class:`RecordMeter` counts the complete records. So the loop usually ends before that exception.
"""

from __future__ import annotations

import io
import ssl

import trio

from tunnel_core.streams.tls_errors import RecordFlood, reason_of
from tunnel_core.streams.tls_records import MAX_ANSWER_BYTES, MAX_EMPTY_RECORDS, RecordMeter
from tunnel_core.wire.frames import Payload

_RECORD = 16 * 1024


class TlsInput:
    """The received bytes of ``tls``, which reads from ``incoming`` and writes its answers to ``outgoing``.

    Methods that decrypt raise ``trio.BrokenResourceError`` from the ``ssl.SSLError`` if the peer violated TLS
    or cut the connection, and ``RecordFlood``. Such an error waits until the data before it was returned.
    """

    __slots__ = ("_incoming", "_kept", "_outgoing", "_records", "_tls", "has_eof", "is_broken", "is_empty")

    def __init__(self, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self.has_eof = False
        """Whether ``take`` has returned all data that the peer sent before its ``close_notify``."""
        self.is_broken = False
        """Whether TLS has failed."""
        self.is_empty = True
        """Whether nothing can be decrypted until more arrives. False after the end and an error."""
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._records = RecordMeter()
        self._kept = bytearray()  # decrypted for a later ``take``

    @property
    def has_more(self) -> bool:
        """Whether ``put_more`` has bytes that arrived before."""
        return self._records.has_more

    def put(self, data: Payload) -> None:
        """Add bytes that arrived; empty: the connection ended. Do not call this while ``has_more``."""
        if data:
            self._records.put(data)
            self.put_more()
        else:
            self._incoming.write_eof()
            self.is_empty = False

    def put_shared(self, data: memoryview) -> None:
        """Like ``put``, but the caller will reuse the memory of ``data``."""
        self.put(data)
        if self._records.has_more:
            self._records.copy_rest()

    def put_more(self) -> None:
        """Give OpenSSL the next records, which are few."""
        self._incoming.write(self._records.take())
        if self._records.whole_records > 0:
            self.is_empty = False

    def take(self, limit: int) -> bytes:
        """Return at most ``limit`` decrypted bytes, or none if no record with data is complete."""
        if self._kept:
            return self._take_kept(limit)
        first = self._read_record(min(limit, _RECORD))
        rest = limit - len(first)
        if not first or self.is_empty or rest <= 0:
            return first
        size = len(first) + min(rest, self._incoming.pending + self._tls.pending())
        memory = io.BytesIO(bytes(size))  # which writes into these bytes, and returns them without a copy
        with memory.getbuffer() as view:
            view[: len(first)] = first
            end = self._fill(view, len(first))
        memory.truncate(end)
        return memory.getvalue()

    def take_into(self, view: memoryview) -> int:
        """Like ``take``, but write the data to the start of ``view``. Return its length."""
        if self._kept:
            data = self._take_kept(len(view))
            view[: len(data)] = data
            return len(data)
        return self._fill(view, 0)

    def keep_all(self) -> None:
        """Decrypt all that arrived, and keep it for ``take``."""
        while data := self._read_record(_RECORD):
            self._kept += data
        if self._kept:
            self.is_empty = False

    def _take_kept(self, limit: int) -> bytes:
        data = bytes(self._kept[:limit])
        del self._kept[:limit]
        self.is_empty = not (self._kept or self.has_eof)
        return data

    def _read_record(self, limit: int) -> bytes:
        """Return the rest of one record, but at most ``limit`` bytes of it."""
        if self.is_empty or self.has_eof:
            return b""
        try:
            data = self._tls.read(limit)
        except ssl.SSLError as error:
            self._note_error(error)
            return b""
        if not data:
            self.has_eof = True
        elif len(data) < limit or not self._tls.pending():
            records = self._records
            records.empty_records = 0
            records.whole_records -= 1
            if records.whole_records <= 0:
                self._note_empty()
        return data

    def _fill(self, view: memoryview, at: int) -> int:
        """Write the data of whole records to ``view`` from ``at`` on. Return where it ends."""
        if self.is_empty or self.has_eof:
            return at
        start, size, read, records = at, len(view), self._tls.read, self._records
        try:
            while at < size:
                length: int = read(_RECORD, view[at:])  # type: ignore[assignment]  # with memory to write to
                if not length:
                    self.has_eof = True
                    break
                at += length
                if at == size and self._tls.pending():
                    break
                records.empty_records = 0
                records.whole_records -= 1
                if records.whole_records <= 0:
                    self._note_empty()
                    break
        except ssl.SSLError as error:
            if at == start or isinstance(error, ssl.SSLWantReadError | ssl.SSLZeroReturnError):
                self._note_error(error)
        return at

    def _note_empty(self) -> None:
        self.is_empty, self._records.whole_records = True, 0
        if self._records.empty_records > MAX_EMPTY_RECORDS or self._outgoing.pending > MAX_ANSWER_BYTES:
            self.is_broken = True
            raise RecordFlood("too many TLS records without data")

    def _note_error(self, error: ssl.SSLError) -> None:
        if isinstance(error, ssl.SSLWantReadError):
            self._note_empty()
        elif isinstance(error, ssl.SSLZeroReturnError):
            self.has_eof = True
        else:
            self.is_broken = True
            raise trio.BrokenResourceError(f"TLS failed: {reason_of(error)}") from error
