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
import threading
from typing import NoReturn

import trio

from tunnel_core.streams.nowait import NowaitStream
from tunnel_core.streams.sockets import SocketStream, read_size
from tunnel_core.streams.tls_errors import reason_of
from tunnel_core.streams.tls_input import TlsInput

_DEFAULT_READ = 64 * 1024
_SEND_PIECE = 256 * 1024  # bounds the ciphertext in memory beside the plain bytes of a large send
_MAX_READ = 256 * 1024
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
        incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(incoming, self._outgoing, server_side, server_hostname)
        self._input = TlsInput(self._tls, incoming, self._outgoing)
        self._receiving, self._sending = False, False
        self._eof_sent = False
        self._broken, self._closed = False, False

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
            if self._input.is_empty:
                await self._feed(limit)
            else:
                # The checkpoint precedes taking the bytes, so cancellation here loses none.
                await trio.lowlevel.checkpoint()
            while not (data := self._input.take(limit)) and not self._input.has_eof:
                await self._feed(limit)
            return data
        finally:
            self._receiving = False

    async def _feed(self, limit: int) -> None:
        if self._input.has_more:
            await trio.lowlevel.checkpoint()
            self._input.put_more()
            return
        try:
            data = await self.transport.receive_some(limit)
        except trio.BrokenResourceError:
            self.has_ended = True
            raise
        self._note_arrived(len(data))
        self._input.put(data)

    def _note_arrived(self, length: int) -> None:
        if length:
            self.has_received = True
        else:
            self.has_ended = True

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
        if self._broken or self._input.is_broken:
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
        self._input.keep_all()
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()  # "want read" is the normal case: sent, and the peer's has yet to come

    async def aclose(self) -> None:
        """Send ``close_notify`` if possible, and close the transport.

        After cancellation the peer sees a break.
        """
        if self._closed:
            return await trio.lowlevel.checkpoint()
        cancelled = trio.current_effective_deadline() == -float("inf")
        broken = self._broken or self._input.is_broken
        graceful = not (cancelled or broken or self._sending or self._eof_sent)
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


class _SharedMemory(threading.local):
    """Memory of each thread for the encrypted bytes of one read, which leave it at once."""

    memory = memoryview(b"")

    def of(self, size: int) -> memoryview:
        """Return ``size`` bytes, which the next call may return again."""
        if len(self.memory) < size:
            self.memory = memoryview(bytearray(size))
        return self.memory[:size]


_shared = _SharedMemory()


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
            if not self._input.is_empty:
                data = self._input.take(max_bytes)
                if data or self._input.has_eof:
                    return data
            if not self._feed_nowait(max_bytes):
                return None

    def receive_into_nowait(self, view: memoryview, read_bytes: int) -> int | None:
        """Like ``receive_nowait``, but write the bytes to the start of ``view``, and return their number.

        At most about ``read_bytes`` are read from the socket.
        """
        if self._closed:
            self._raise_closed()
        while True:
            if not self._input.is_empty:
                length = self._input.take_into(view)
                if length or self._input.has_eof:
                    return length
            if not self._feed_nowait(read_bytes):
                return None

    def _feed_nowait(self, read_bytes: int) -> bool:
        """Feed bytes that arrived. Return False if there are none yet."""
        if self._input.has_more:
            self._input.put_more()
            return True
        memory = _shared.of(min(max(read_bytes, _DEFAULT_READ), _MAX_READ))
        length = self._socket.receive_into_nowait(memory)
        if length is None:
            return False
        self._note_arrived(length)
        self._input.put_shared(memory[:length])
        return True

    async def wait_readable(self) -> None:
        """Wait until ``receive_nowait`` may have an answer."""
        if self._input.is_empty and not self._input.has_more:
            await self._socket.wait_readable()
        else:
            await trio.lowlevel.checkpoint()

    @property
    def room(self) -> int:
        """A constant, because the kernel bounds its own buffer."""
        return self._socket.room

    def send_nowait(self, data: bytes | bytearray | memoryview) -> bool:
        if self._sending or self._closed or self._broken or self._eof_sent or self._input.is_broken:
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
