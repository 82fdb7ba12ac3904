"""TLS over any trio stream, with a half-close.

``trio.SSLStream`` has no ``send_eof``, so ``ssh`` or ``kubectl exec -i < file`` through a TLS entrance would
lose the end of their input, or its answer. TLS itself has a half-close:

1. ``send_eof`` sends ``close_notify``. RFC 8446 section 6.1 lets the other direction go on.
2. OpenSSL sends ``close_notify`` from ``unwrap()``, which then expects the peer's ``close_notify`` and fails
   for good if it finds data. So the stream first decrypts and keeps all bytes that arrived, and ``unwrap()``
   finds none ("want read"). The stream never calls it again.
3. ``receive_some`` never sends, because its cancellation must leave no half-written record. The answer to a
   key update leaves before the next data, which RFC 8446 section 4.6.3 allows. The context must switch
   renegotiation (TLS 1.2) off.
4. A connection that ends without ``close_notify`` is broken, because it may be truncated. Python before
   3.11.4 (Debian 12 has 3.11.2) asks OpenSSL 3 to report such an end as a clean one. So the stream clears
   that option, and the error has another class there (``is_end_of_file``).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import NoReturn

import trio

from tunnel_core.streams.nowait import NowaitStream
from tunnel_core.streams.sockets import SocketStream, read_size
from tunnel_core.streams.tls_errors import RecordFlood, reason_of
from tunnel_core.streams.tls_records import MAX_ANSWER_BYTES, MAX_EMPTY_RECORDS, RecordMeter

_RECORD = 16 * 1024
_DEFAULT_READ = 64 * 1024
_SEND_PIECE = 256 * 1024  # bounds the ciphertext in memory beside the plain bytes of a large send
_CLOSE_NOTIFY_SECONDS = 2.0
_IGNORE_UNEXPECTED_EOF = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)  # absent before OpenSSL 3


class TlsStream(trio.abc.HalfCloseableStream):
    """One TLS connection. Call :meth:`do_handshake` before anything else.

    Cancelling ``receive_some`` loses nothing; cancelling ``send_all`` or ``send_eof`` breaks the stream.
    """

    def __init__(
        self,
        transport: trio.abc.Stream,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        self.transport = transport
        self.has_received = False
        """Whether the peer sent any byte."""
        self.has_ended = False
        """Whether the peer closed or reset the connection."""
        context.options &= ~_IGNORE_UNEXPECTED_EOF
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        self._records = RecordMeter()
        self._receiving, self._sending = False, False
        self._decrypted = bytearray()  # decrypted by send_eof for a later receive_some
        self._eof_received, self._eof_sent = False, False
        self._broken, self._closed = False, False
        self._needs_input = True  # nothing can be decrypted until more arrives

    async def do_handshake(self, lock: contextlib.AbstractAsyncContextManager[object] | None = None) -> None:
        """Complete the handshake, without a deadline of its own.

        Raises ``trio.BrokenResourceError`` from an ``ssl.SSLError`` if the two sides do not agree, after it
        sent the alert to the peer. Streams that share ``lock`` compute one after the other, and other tasks
        run in between. A step takes a millisecond, and a whole fleet may connect at once.
        """
        if self._tls.server_side:
            await self._feed(_DEFAULT_READ)  # the client begins
        while True:
            try:
                async with lock or contextlib.nullcontext():
                    self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed(_DEFAULT_READ)
            except ssl.SSLError as error:
                await self._fail_handshake(error)
            else:
                return await self._flush()

    async def _fail_handshake(self, error: ssl.SSLError) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await self._flush()  # a failed alert must not hide the cause
        self._broken = True
        raise trio.BrokenResourceError(f"TLS handshake failed: {reason_of(error)}") from error

    def peer_certificate(self) -> bytes:
        """Return the peer's leaf in PEM, which the handshake verified; empty if the peer sent none."""
        der = self._tls.getpeercert(binary_form=True)
        return ssl.DER_cert_to_PEM_cert(der).encode() if der else b""

    def version(self) -> str:
        """Return the TLS version, for example ``TLSv1.3``."""
        return self._tls.version() or ""

    def alpn(self) -> str:
        """Return the protocol that both ends chose, for example ``h2``; empty if none."""
        return self._tls.selected_alpn_protocol() or ""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        limit = max_bytes if type(max_bytes) is int and max_bytes > 0 else read_size(max_bytes)
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this TLS stream")
        self._receiving = True
        try:
            if self._closed:
                self._raise_closed()
            if self._decrypted or self._eof_received or not self._needs_input:
                # The checkpoint precedes taking the bytes, so cancellation here loses none.
                await trio.lowlevel.checkpoint()
            else:
                await self._feed(limit)
            while not (data := self._take(limit)) and not self._eof_received:
                await self._feed(limit)
            return data
        finally:
            self._receiving = False

    def _take(self, limit: int) -> bytes:
        if self._decrypted:
            data = bytes(self._decrypted[:limit])
            del self._decrypted[:limit]
            return data
        pieces: list[bytes] = []
        while limit > 0 and (piece := self._decrypt(min(limit, _RECORD), pieces)):
            pieces.append(piece)
            limit -= len(piece)
            if not (self._incoming.pending or self._tls.pending()):
                self._needs_input = True  # without the exception that one more read would cost
                if self._outgoing.pending > MAX_ANSWER_BYTES:
                    self._raise_flood()
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _decrypt(self, limit: int, earlier: list[bytes]) -> bytes:
        """Return up to one record; empty: none now, or the end.

        Errors wait until ``earlier`` is delivered.
        """
        if self._eof_received:
            return b""
        try:
            data = self._tls.read(limit)
        except ssl.SSLWantReadError:
            self._needs_input = True
            if self._records.empty_records > MAX_EMPTY_RECORDS or self._outgoing.pending > MAX_ANSWER_BYTES:
                self._raise_flood()
            return b""
        except ssl.SSLZeroReturnError:
            data = b""
        except ssl.SSLError as error:
            if earlier:
                return b""
            self._broken = True
            raise trio.BrokenResourceError(f"TLS failed: {reason_of(error)}") from error
        self._eof_received = not data
        self._records.empty_records = 0
        return data

    def _raise_flood(self) -> NoReturn:
        self._broken = True
        raise RecordFlood("too many TLS records without data")

    async def _feed(self, limit: int) -> None:
        if self._records.has_more:
            await trio.lowlevel.checkpoint()
            self._feed_records()
            return
        try:
            data = await self.transport.receive_some(limit)
        except trio.BrokenResourceError:
            self.has_ended = True
            raise
        self._feed_nowait(data)

    def _feed_nowait(self, data: bytes | bytearray) -> None:
        self._needs_input = False
        if data:
            self.has_received = True
            self._records.put(data)
            self._incoming.write(self._records.take())
        else:
            self.has_ended = True
            self._incoming.write_eof()

    def _feed_records(self) -> None:
        self._needs_input = False
        self._incoming.write(self._records.take())

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._start_sending()
        try:
            if self._eof_sent:
                self._raise_closed()
            if not (view := memoryview(data)):
                await trio.lowlevel.checkpoint()
            for start in range(0, len(view), _SEND_PIECE):
                self._encrypt(view[start : start + _SEND_PIECE])
                await self._flush()
        finally:
            self._sending = False

    def _encrypt(self, view: memoryview) -> None:
        try:
            self._tls.write(view)
        except ssl.SSLError as error:
            self._broken = True
            raise trio.BrokenResourceError(f"TLS failed: {reason_of(error)}") from error

    async def _flush(self) -> None:
        if not self._outgoing.pending:
            return
        try:
            await self.transport.send_all(self._outgoing.read())
        except BaseException:
            self._broken = True  # part of a record may have left
            raise

    async def wait_send_all_might_not_block(self) -> None:
        self._start_sending()
        try:
            await self.transport.wait_send_all_might_not_block()
        finally:
            self._sending = False

    def _start_sending(self) -> None:
        self._check_can_send()
        self._sending = True

    def _check_can_send(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this TLS stream")
        if self._closed:
            self._raise_closed()
        if self._broken:
            raise trio.BrokenResourceError("this TLS stream is broken")

    def _raise_closed(self) -> NoReturn:
        why = "this TLS stream is closed" if self._closed else "the end was already sent on this TLS stream"
        raise trio.ClosedResourceError(why)

    async def send_eof(self) -> None:
        self._start_sending()
        try:
            if self._eof_sent:
                return await trio.lowlevel.checkpoint()
            self._write_close_notify()
            await self._flush()
        finally:
            self._sending = False

    def _write_close_notify(self) -> None:
        self._eof_sent = True
        while data := self._decrypt(_RECORD, []):
            self._decrypted += data
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()  # "want read" is the normal case: sent, and the peer's has yet to come

    async def aclose(self) -> None:
        """Send ``close_notify`` if possible, and close the transport.

        After cancellation the peer sees a break.
        """
        if self._closed:
            return await trio.lowlevel.checkpoint()
        cancelled = trio.current_effective_deadline() == -float("inf")
        graceful = not (cancelled or self._broken or self._sending or self._eof_sent)
        self._closed = True
        gone = trio.BrokenResourceError, trio.ClosedResourceError
        try:
            if graceful:
                with contextlib.suppress(*gone), trio.move_on_after(_CLOSE_NOTIFY_SECONDS):
                    self._write_close_notify()
                    await self._flush()
        finally:
            await self.transport.aclose()

    def abort(self) -> None:
        """End the stream without ``close_notify`` and reset the socket, so that the peer sees a break."""
        self._closed = True
        if isinstance(self.transport, SocketStream):
            self.transport.abort()


class SocketTlsStream(TlsStream, NowaitStream):
    """TLS over a ``SocketStream``, which ``relay`` can drive without a checkpoint per piece."""

    def __init__(
        self,
        transport: SocketStream,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        super().__init__(transport, context, server_side=server_side, server_hostname=server_hostname)
        self._socket = transport
        self._unencrypted = memoryview(b"")  # of the last ``send_nowait``

    @property
    def descriptor(self) -> int:
        """The socket's descriptor, for a poller."""
        return self._socket.socket.fileno()

    def set_tcp_option(self, option: int, value: int) -> None:
        """Set a TCP option of the socket."""
        self._socket.socket.setsockopt(socket.IPPROTO_TCP, option, value)

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """Return bytes, ``b""`` at the end, None if there are none yet. Raises as ``receive_some``."""
        if self._closed:
            self._raise_closed()
        while True:
            if self._decrypted or self._eof_received or not self._needs_input:
                data = self._take(max_bytes)
                if data or self._eof_received:
                    return data
            if self._records.has_more:
                self._feed_records()
            elif (encrypted := self._socket.receive_nowait(max(max_bytes, _DEFAULT_READ))) is None:
                return None
            else:
                self._feed_nowait(encrypted)

    async def wait_readable(self) -> None:
        """Wait until ``receive_nowait`` may have an answer."""
        if self._needs_input and not (self._decrypted or self._eof_received or self._records.has_more):
            await self._socket.wait_readable()
        else:
            await trio.lowlevel.checkpoint()

    @property
    def room(self) -> int:
        """A constant, because the kernel bounds its own buffer."""
        return self._socket.room

    def send_nowait(self, data: bytes | bytearray | memoryview) -> bool:
        if self._sending or self._closed or self._broken or self._eof_sent:
            self._check_can_send()
            self._raise_closed()
        return self._put_pieces(memoryview(data))

    def _put_pieces(self, view: memoryview) -> bool:
        while view:
            self._encrypt(view[:_SEND_PIECE])
            view = view[_SEND_PIECE:]
            if not self._put_encrypted():
                self._unencrypted = view
                return False
        return True

    def _put_encrypted(self) -> bool:
        """Send ciphertext. Until ``flush`` sends its rest, sends raise and ``aclose`` sends no alert."""
        try:
            self._sending = not self._socket.send_nowait(self._outgoing.read())
        except trio.BrokenResourceError:
            self._broken = True
            raise
        return not self._sending

    async def flush(self) -> None:
        while self._sending:
            await self._socket.flush()
            self._sending = False
            view, self._unencrypted = self._unencrypted, memoryview(b"")
            self._put_pieces(view)

    def check(self) -> None:
        """Raise ``trio.BrokenResourceError`` if the peer reset the socket."""
        self._socket.check()

    @property
    def undelivered(self) -> int:
        return self._socket.undelivered

    def check_peer(self) -> None:
        self._socket.check_peer()

    def probe_peer_every(self, seconds: float) -> None:
        self._socket.probe_peer_every(seconds)

    def send_eof_nowait(self) -> bool:
        self._check_can_send()
        if self._eof_sent:
            return True
        self._write_close_notify()
        return self._put_encrypted()

    def close_nowait(self) -> None:
        """Close the transport without ``close_notify``."""
        self._closed = True
        self._socket.close_nowait()
