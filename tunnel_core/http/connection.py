"""Common part of both ends of an HTTP/1.1 connection: h11 over a stream, bodies, and protocol switches."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import h11
import trio

from tunnel_core.streams.half_closed import CHECK_SECONDS
from tunnel_core.streams.nowait import NowaitStream
from tunnel_core.streams.sockets import KEEPALIVE_SECONDS, SocketStream

READ_BYTES = 64 * 1024
MAX_READ_AHEAD = 64 * 1024
"""Limit of bytes received from a user before the answer: the initial credit of the stream that carries
them."""
_LOOK_SECONDS = 1.0
"""Time between two checks of a connection from which nothing is read while its answer is awaited. The end of
input is no break, and hides a later break."""


class Body(AsyncIterator[bytes]):
    """The pieces of a body. Not a generator, because trio does not allow dropping an unfinished generator."""

    def __init__(self, receive_event: Callable[[], Awaitable[h11.Data | h11.EndOfMessage]]) -> None:
        self._receive_event = receive_event
        self.trailers: list[tuple[bytes, bytes]] = []
        """Trailers, spelled as received, after the end of the body."""

    async def __anext__(self) -> bytes:
        event = await self._receive_event()
        if isinstance(event, h11.EndOfMessage):
            self.trailers = event.headers.raw_items() if event.headers else self.trailers
            raise StopAsyncIteration
        return bytes(event.data)

    async def aclose(self) -> None:
        """Stop reading, for ``aclosing``. The unread rest stays with the connection."""


class Connection:
    """One end of a connection: an h11 state machine over a stream. Sends keep their order.

    Connections with the same ``turns`` process received data one after the other.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        role: type[h11.CLIENT | h11.SERVER],
        max_event: int,
        turns: trio.Lock | None = None,
    ) -> None:
        self.stream = stream
        self._turns = turns
        self.has_switched = False
        self._h11 = h11.Connection(role, max_incomplete_event_size=max_event)
        self._sending = trio.Lock()

    @property
    def has_turns(self) -> bool:
        """Whether this connection waits for its turn after it has received data."""
        return self._turns is not None

    @property
    def read_ahead(self) -> bytes:
        """Bytes that have arrived and are not parsed yet."""
        return self._h11.trailing_data[0]

    async def send(self, *events: h11.Event) -> None:
        """Send the events as one write. Cancelled, the connection can only be closed."""
        async with self._sending:
            if data := self.encode(*events):
                await self.stream.send_all(data)

    async def _send_alone(self, event: h11.Event) -> None:
        """Do the same as ``send``, without a checkpoint if nothing else is being sent."""
        if self._sending.locked() or not isinstance(self.stream, NowaitStream):
            await self.send(event)
        else:
            await self.stream.put(self.encode(event))

    def encode(self, *events: h11.Event) -> bytes:
        """Return the events as bytes and count them as sent, for a head that the caller sends itself."""
        return b"".join([self._h11.send(event) or b"" for event in events])

    def switch(self) -> bytes:
        """End HTTP after the 2xx to a CONNECT or the 101; then the caller owns the stream.

        Return the bytes of the new protocol that have been received already.
        """
        if self._h11.our_state is not h11.SWITCHED_PROTOCOL:
            raise RuntimeError("switch() needs an accepted CONNECT or upgrade")
        self.has_switched = True
        return self.read_ahead

    async def wait_left(self) -> None:
        """Return when the peer has broken the connection; keep the bytes that the peer sends.

        The end of input is no break, because a client may end its half after the request and keep reading.
        After that end, or beyond ``MAX_READ_AHEAD`` bytes, nothing is received and the socket is checked once
        a second. A peer that closed both halves of a TCP connection looks like a peer that ended its half.
        Only a reset shows the difference: the peer's kernel answers a byte or a keepalive of this end with a
        reset.

        Cancel the wait when the answer is there. Allow no other receive on this connection meanwhile.
        """
        try:
            while len(self.read_ahead) < MAX_READ_AHEAD and await self._receive_later():
                pass
            await self._wait_broken()
        except trio.BrokenResourceError:
            return

    async def _wait_broken(self) -> None:
        if not isinstance(self.stream, NowaitStream):
            await trio.sleep_forever()
        self.stream.probe_peer_every(CHECK_SECONDS)
        try:
            while True:
                self.stream.check_peer()
                await trio.sleep(_LOOK_SECONDS)
        finally:
            with contextlib.suppress(trio.ClosedResourceError):
                self.stream.probe_peer_every(KEEPALIVE_SECONDS)

    async def _receive_later(self) -> bool:
        """Do the same as ``_receive`` for a peer that is likely to send nothing for a while."""
        if not isinstance(self.stream, SocketStream):
            return await self._receive(MAX_READ_AHEAD)
        data: bytes | None = None
        while data is None:
            await self.stream.wait_readable()
            data = self.stream.receive_nowait(MAX_READ_AHEAD)
        self._h11.receive_data(data)
        return bool(data)

    async def _receive(self, size: int = READ_BYTES) -> bool:
        data = await self.stream.receive_some(size)
        self._h11.receive_data(bytes(data))
        if self._turns is not None:
            async with self._turns:
                pass
        return bool(data)

    def receive_body(self) -> Body:
        """Return the pieces of the body as they arrive.

        The first read of a request's body answers ``Expect: 100-continue``. Reading raises ``Refused``: for a
        request with ``BAD_REQUEST``, ``USER_LEFT`` or ``IDLE_TIMEOUT``, for an answer with
        ``TARGET_PROTOCOL``.
        """
        return Body(self._receive_body_event)

    async def _receive_body_event(self) -> h11.Data | h11.EndOfMessage:
        raise NotImplementedError

    async def _next_body_event(self) -> h11.Data | h11.EndOfMessage:
        while self._h11.their_state is h11.SEND_BODY:
            event = self._h11.next_event()
            if isinstance(event, h11.Data | h11.EndOfMessage):
                return event
            await self._receive()
        return h11.EndOfMessage()
