"""One request of a browser and its answer, over one stream.

1. The head goes out inside the ``open``, before the dial is answered: the first byte of the answer
   comes after one round trip.
2. A task of its own moves the request's body and then watches whether the browser breaks the connection,
   which resets the stream at once, also while a long answer is silent. The end of its input is no break.
3. Every piece is passed on as it comes; nothing is collected, whatever its content type.
4. Nothing is ever sent twice: once the request is out, a lost stream is answered with 502, since
   nobody knows what the target has done with a POST.
5. An answer cut short is cut short for the browser too: its connection is aborted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import h11
import trio

from tunnel_core.http.server import HeadLimits, HttpClientConnection, HttpConnection
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.relay import abort
from tunnel_core.streams.tunnel_stream import StreamReset
from tunnel_server.access.opener import Opener, StreamRequest, UserStream, reason_of
from tunnel_server.reverse_proxy.headers import has_body, request_forward, response_back, switch_back

# Security headers of dashboards run to some KiB; a request's bound would refuse real pages.
_ANSWER_LIMITS = HeadLimits(max_head_bytes=64 * 1024)
ANSWER_SECONDS = 300.0
"""Silence of a target before its answer begins; above what slow reports take, below for ever."""


def head_of(*events: h11.Event) -> bytes:
    """The bytes that open a request, for the ``open`` of a stream that is not there yet."""
    connection = h11.Connection(h11.CLIENT)
    return b"".join(connection.send(event) or b"" for event in events)


class Exchange:
    """Made for one request of the user at the address ``source``. ``peer`` names the target in sentences."""

    def __init__(self, http: HttpConnection, request: h11.Request, source: str, peer: str) -> None:
        self._http = http
        self._peer = peer
        self._has_body = has_body(request)
        head = request_forward(request, source)
        self._head: list[h11.Event] = [head] if self._has_body else [head, h11.EndOfMessage()]
        self._edge: HttpClientConnection
        self._passage: UserStream
        self._patience = trio.CancelScope()
        self._refused: Refused | None = None
        self._switch: h11.InformationalResponse | None = None

    async def run(self, opener: Opener, wish: StreamRequest) -> None:
        """Opens the stream and answers the request.

        Raises ``Refused``; if the answer had begun, the browser's connection is aborted by then.
        """
        async with opener.open(wish, head_of(*self._head)) as self._passage:
            self._edge = HttpClientConnection(self._passage.stream, _ANSWER_LIMITS, self._peer)
            self._edge.encode(*self._head)  # is on its way already
            await self._exchange()
            if self._refused is not None:
                if self._http.has_answered:
                    abort(self._http.stream, self._refused.reason)
                # A new one: kept here with its traceback it would hold this frame, and the frame this object.
                raise Refused(self._refused.reason, self._refused.detail)
            if self._switch is not None:
                await self._relay_switched(self._switch)

    async def _exchange(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guard, self._send_request, nursery)
            await self._guard(self._receive_answer, nursery)
            nursery.cancel_scope.cancel()

    async def _guard(self, step: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        """Keeps the first refusal for behind the nursery, which would wrap it, and ends the other step."""
        try:
            await step()
        except (Refused, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._refused = self._refused or Refused(*reason_of(error))
            nursery.cancel_scope.cancel()

    # The request.

    async def _send_request(self) -> None:
        # A target may answer and stop reading before it has the whole body: its answer counts, not this.
        with contextlib.suppress(StreamReset):
            if self._has_body:
                await self._send_body()
        self._patience.deadline = trio.current_time() + ANSWER_SECONDS
        await self._watch_browser()

    async def _send_body(self) -> None:
        async with contextlib.aclosing(self._http.receive_body()) as chunks:
            async for chunk in chunks:
                await self._edge.send(h11.Data(data=chunk))
        await self._edge.send(h11.EndOfMessage())

    async def _watch_browser(self) -> None:
        await self._http.wait_left()
        raise Refused(Reason.USER_LEFT)

    # The answer.

    async def _receive_answer(self) -> None:
        with self._patience:
            response = await self._edge.receive_response()
        if self._patience.cancelled_caught:
            detail = f"{self._peer} did not begin to answer within {ANSWER_SECONDS:g} s"
            raise Refused(Reason.TARGET_TIMEOUT, detail)
        self._passage.first_byte()
        if isinstance(response, h11.InformationalResponse):
            self._switch = switch_back(response)
            return
        await self._http.send(response_back(response))
        async with contextlib.aclosing(self._edge.receive_body()) as chunks:
            async for chunk in chunks:
                await self._http.send(h11.Data(data=chunk))
        await self._http.send(h11.EndOfMessage())

    async def _relay_switched(self, switch: h11.InformationalResponse) -> None:
        await self._http.send(switch)
        from_browser, from_target = self._http.switch(), self._edge.switch()
        if from_target:
            await self._http.stream.send_all(from_target)
        if from_browser:
            await self._passage.stream.send_all(from_browser)
        await self._passage.relay(self._http.stream)
