"""What both ends of an HTTP/1.1 connection share: an h11 machine over a stream, bodies, the switch."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import h11
import trio

from tunnel_core.streams.half_closed import LOOK_SECONDS
from tunnel_core.streams.nowait import NowaitStream
from tunnel_core.streams.sockets import KEEPALIVE_SECONDS

READ_BYTES = 64 * 1024
MAX_READ_AHEAD = 64 * 1024
"""Bytes taken from a user before the answer; the initial credit of a stream, which carries them."""
_LOOK_SECONDS = 1.0
"""Time between two checks of a connection from which nothing is read while its answer is awaited. The end of
input is no break, and hides one."""


class Body(AsyncIterator[bytes]):
    """The pieces of a body. No generator, because those must not be dropped half-way under trio."""

    def __init__(self, receive_event: Callable[[], Awaitable[h11.Data | h11.EndOfMessage]]) -> None:
        self._receive_event = receive_event

    async def __anext__(self) -> bytes:
        event = await self._receive_event()
        if isinstance(event, h11.EndOfMessage):
            raise StopAsyncIteration
        return bytes(event.data)

    async def aclose(self) -> None:
        """Gives up reading, for ``aclosing``. What is left stays with the connection."""


class Connection:
    """What both ends share: an h11 machine fed from a stream, sends in order, bodies, the switch."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        role: type[h11.CLIENT | h11.SERVER],
        max_event: int,
        turns: trio.Lock | None = None,
    ) -> None:
        self.stream = stream
        self._turns = turns or contextlib.nullcontext()
        self.has_switched = False
        self._h11 = h11.Connection(role, max_incomplete_event_size=max_event)
        self._sending = trio.Lock()

    @property
    def read_ahead(self) -> bytes:
        """What has arrived behind everything parsed so far."""
        return self._h11.trailing_data[0]

    async def send(self, *events: h11.Event) -> None:
        """Sends the events as one write. ``ConnectionClosed`` sends nothing."""
        async with self._sending:
            if data := self.encode(*events):
                await self.stream.send_all(data)

    def encode(self, *events: h11.Event) -> bytes:
        """The events as bytes, which count as sent: for a head that travels by another way."""
        return b"".join(self._h11.send(event) or b"" for event in events)

    def switch(self) -> bytes:
        """Leaves HTTP after the 2xx to a CONNECT or the 101; the stream is the caller's from now on.

        Returns the bytes of the new protocol that have been read already.
        """
        if self._h11.our_state is not h11.SWITCHED_PROTOCOL:
            raise RuntimeError("switch() needs an accepted CONNECT or upgrade")
        self.has_switched = True
        return self.read_ahead

    async def wait_left(self) -> None:
        """Return when the peer has broken the connection; what the peer sends is kept.

        The end of input is no break: a client may end its half after the request and read on. Nothing is
        received behind that end, or beyond ``MAX_READ_AHEAD`` bytes; the socket is checked once a second
        then. A peer that closed both halves of a TCP connection looks like one that ended its half, until
        something is sent to it, or its kernel answers a keepalive with a reset.

        Cancel it when the answer is there. Not together with another receive on this connection.
        """
        try:
            while len(self.read_ahead) < MAX_READ_AHEAD and await self._receive(MAX_READ_AHEAD):
                pass
            await self._wait_broken()
        except trio.BrokenResourceError:
            return

    async def _wait_broken(self) -> None:
        if not isinstance(self.stream, NowaitStream):
            await trio.sleep_forever()
        self.stream.ask_peer_every(LOOK_SECONDS)
        try:
            while True:
                self.stream.check_peer()
                await trio.sleep(_LOOK_SECONDS)
        finally:
            with contextlib.suppress(trio.ClosedResourceError):
                self.stream.ask_peer_every(KEEPALIVE_SECONDS)

    async def _receive(self, size: int = READ_BYTES) -> bool:
        data = await self.stream.receive_some(size)
        self._h11.receive_data(bytes(data))
        async with self._turns:
            return bool(data)

    def receive_body(self) -> Body:
        """The body as it comes.

        Of a request: the first read answers ``Expect: 100-continue``; raises ``Refused`` with
        ``BAD_REQUEST``, ``USER_LEFT`` or ``IDLE_TIMEOUT``. Of an answer: with ``TARGET_PROTOCOL``.
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
