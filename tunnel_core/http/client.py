"""The client's end of HTTP/1.1. It connects to targets too, so no answer is trusted."""

from __future__ import annotations

import h11
import trio

from tunnel_core.http.connection import Connection
from tunnel_core.http.head import HeadLimits, head_bytes, wording
from tunnel_core.reasons import Reason, Refused

_MAX_INTERIM_ANSWERS = 10


class HttpClientConnection(Connection):
    """The client's end of one connection. ``peer`` is the server's name in sentences."""

    def __init__(
        self, stream: trio.abc.Stream, limits: HeadLimits | None = None, peer: str = "the target"
    ) -> None:
        self.limits = limits or HeadLimits()
        super().__init__(stream, h11.CLIENT, self.limits.max_head_bytes)
        self._peer = peer

    async def receive_response(
        self, timeout_seconds: float | None = None
    ) -> h11.Response | h11.InformationalResponse:
        """Return the head of the final answer, or of the 101 that accepts an upgrade.

        Other interim answers are skipped. Raises ``Refused`` with ``TARGET_TIMEOUT`` or ``TARGET_PROTOCOL``.
        """
        with trio.move_on_after(float("inf") if timeout_seconds is None else timeout_seconds):
            return await self._read_response()
        raise Refused(
            Reason.TARGET_TIMEOUT, f"{self._peer} did not answer within {timeout_seconds:g} seconds"
        )

    async def _read_response(self) -> h11.Response | h11.InformationalResponse:
        for _ in range(_MAX_INTERIM_ANSWERS):
            event = await self._next_head()
            if isinstance(event, h11.Response) or event.status_code == 101:
                return event
        raise Refused(Reason.TARGET_PROTOCOL, f"{self._peer} sent too many interim answers")

    async def _next_head(self) -> h11.Response | h11.InformationalResponse:
        while (event := self._next_event()) is h11.NEED_DATA:
            await self._receive()
        if not isinstance(event, h11.Response | h11.InformationalResponse):
            raise Refused(Reason.TARGET_PROTOCOL, f"{self._peer} closed the connection without an answer")
        if len(event.headers) > self.limits.max_headers or head_bytes(event) > self.limits.max_head_bytes:
            raise Refused(Reason.TARGET_PROTOCOL, f"{self._peer} answered with too large a head")
        return event

    def _next_event(self) -> object:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            if self._h11.trailing_data == (b"", True):
                detail = f"{self._peer} closed the connection without an answer"
            else:
                detail = f"{self._peer} did not answer in HTTP: {wording(error)}"
            raise Refused(Reason.TARGET_PROTOCOL, detail) from None

    async def _receive_body_event(self) -> h11.Data | h11.EndOfMessage:
        try:
            return await self._next_body_event()
        except h11.RemoteProtocolError as error:
            raise Refused(
                Reason.TARGET_PROTOCOL, f"{self._peer} did not complete its answer: {wording(error)}"
            ) from None

    def finish(self) -> bool:
        """Prepare the connection for another request; return whether it can carry one."""
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        unexpected, has_ended = self._h11.trailing_data
        return not unexpected and not has_ended


async def exchange(
    connection: HttpClientConnection, request: h11.Request, body: bytes = b"", *, max_body_bytes: int
) -> tuple[h11.Response | h11.InformationalResponse, bytes]:
    """Send a request and return the whole answer. Raises ``Refused`` above ``max_body_bytes``."""
    await connection.send(request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage())
    response = await connection.receive_response()
    collected = bytearray()
    async for chunk in connection.receive_body():
        collected += chunk
        if len(collected) > max_body_bytes:
            raise Refused(Reason.TARGET_PROTOCOL, f"the answer is larger than {max_body_bytes} bytes")
    return response, bytes(collected)
