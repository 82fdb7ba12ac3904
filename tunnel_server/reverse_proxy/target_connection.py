"""One HTTP/1.1 connection to a target over the stream of one user, for one request after the other."""

from __future__ import annotations

from tunnel_core.limits import KIB
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.nowait import NowaitStream
from tunnel_core.streams.tunnel_stream import StreamReset
from tunnel_server.access.opener import UserStream
from tunnel_server.reverse_proxy.answers import AnswerParser
from tunnel_server.reverse_proxy.messages import AnswerEnd, AnswerEvent

READ_BYTES = 256 * KIB
"""Bytes that are read from the stream before they are sent to the browser."""
_CLOSED_BY_TARGET = (Reason.TARGET_RESET, Reason.DONE)


class TargetConnection:
    """The connection over ``user_stream``, which is entered already. ``peer`` names the target."""

    def __init__(self, user_stream: UserStream, peer: str) -> None:
        self.user_stream = user_stream
        self.parser = AnswerParser(peer)
        self.owner: object | None = None
        """The browser's connection that alone may use this one; None: any of the user's."""
        self.idle_since = 0.0
        self.has_served = False
        """Whether an earlier request was answered here."""
        self._events: list[AnswerEvent] = []

    async def send(self, data: bytes) -> None:
        """Send ``data`` as credit allows. Raises ``StreamReset`` if the target receives no more."""
        stream = self.user_stream.stream
        if isinstance(stream, NowaitStream):
            await stream.put(data)
        else:
            await stream.send_all(data)

    @property
    def may_reuse(self) -> bool:
        """Whether another request may follow: the answer is complete, and nothing hints at its end."""
        return self.parser.may_reuse and not self._events and not self.user_stream.stream.is_closed

    @property
    def has_whole_answer(self) -> bool:
        """Whether the events that wait reach to the end of the answer."""
        return bool(self._events) and isinstance(self._events[-1], AnswerEnd)

    async def wait_events(self) -> None:
        """Wait until there is an event. Cancellation loses nothing.

        Raises ``Refused`` for what is no answer, and ``StreamReset``.
        """
        while not self._events:
            self.parser.receive(await self._receive())
            self.user_stream.first_byte()
            self._parse()

    def take_events(self) -> list[AnswerEvent]:
        """Return the events that have arrived."""
        events, self._events = self._events, []
        return events

    def read_nowait(self) -> None:
        """Parse what has arrived without waiting for more."""
        stream = self.user_stream.stream
        if not isinstance(stream, NowaitStream) or self.parser.is_complete:
            return
        room = READ_BYTES
        while room > 0 and not self.parser.is_complete and (data := stream.receive_nowait(room)):
            self.parser.receive(data)
            self._parse()
            room -= len(data)

    def _parse(self) -> None:
        while (event := self.parser.next_event()) is not None:
            self._events.append(event)

    async def _receive(self) -> bytes:
        stream = self.user_stream.stream
        if not isinstance(stream, NowaitStream):
            return bytes(await stream.receive_some(READ_BYTES))
        while (data := stream.receive_nowait(READ_BYTES)) is None:
            await stream.wait_readable()
        return bytes(data)

    def was_closed_unanswered(self, error: BaseException) -> bool:
        """Whether the target closed an idle connection, so that nothing of the request was acted on.

        That holds for a connection that an earlier request has used. ``error`` ended the request.
        """
        if not self.has_served or self.parser.has_begun:
            return False
        if isinstance(error, StreamReset):
            return error.reason in _CLOSED_BY_TARGET
        return isinstance(error, Refused) and error.reason is Reason.TARGET_PROTOCOL
