"""One request of a browser and its answer, over one stream.

1. The head goes out right behind the ``open``, before the dial is answered: the first byte of the
   answer comes after one round trip.
2. A task of its own moves the request's body and then watches whether the browser leaves, which
   resets the stream at once, also while a long answer is silent.
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

from tunnel_core.http import HeadLimits, HttpClientConnection, HttpConnection
from tunnel_core.reasons import Reason, Refused
from tunnel_core.relay import abort
from tunnel_core.stream import StreamReset
from tunnel_server.heads import has_body, request_forward, response_back, switch_back
from tunnel_server.opening import Passage, blame

# Security headers of dashboards run to some KiB; a request's bound would refuse real pages.
_ANSWER_LIMITS = HeadLimits(max_head_bytes=64 * 1024)
ANSWER_SECONDS = 300.0
"""Silence of a target before its answer begins; above what slow reports take, below for ever."""


class Exchange:
    """Made for one request. ``peer`` names the target in sentences."""

    def __init__(self, http: HttpConnection, request: h11.Request, passage: Passage, peer: str) -> None:
        self._http = http
        self._request = request
        self._passage = passage
        self._peer = peer
        self._edge = HttpClientConnection(passage.stream, _ANSWER_LIMITS, peer)
        self._patience = trio.CancelScope()
        self._refused: Refused | None = None
        self._switch: h11.InformationalResponse | None = None

    async def run(self, source: str) -> None:
        """Answers the request of the user at the address ``source``.

        Raises ``Refused``; if the answer had begun, the browser's connection is aborted by then.
        """
        await self._exchange(request_forward(self._request, source))
        if self._refused is not None:
            if self._http.has_answered:
                abort(self._http.stream, self._refused.reason)
            raise self._refused
        if self._switch is not None:
            await self._relay_switched(self._switch)

    async def _exchange(self, request: h11.Request) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._passage.watch_opened)
            nursery.start_soon(self._guard, lambda: self._send_request(request), nursery)
            await self._guard(self._receive_answer, nursery)
            nursery.cancel_scope.cancel()

    async def _guard(self, step: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        """Keeps the first refusal for behind the nursery, which would wrap it, and ends the other step."""
        try:
            await step()
        except (Refused, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._refused = self._refused or Refused(*blame(error))
            nursery.cancel_scope.cancel()

    # The request.

    async def _send_request(self, request: h11.Request) -> None:
        # A target may answer and stop reading before it has the whole body: its answer counts, not this.
        with contextlib.suppress(StreamReset):
            await self._send_head_and_body(request)
        self._patience.deadline = trio.current_time() + ANSWER_SECONDS
        await self._watch_browser()

    async def _send_head_and_body(self, request: h11.Request) -> None:
        if not has_body(self._request):
            await self._edge.send(request, h11.EndOfMessage())
            return
        await self._edge.send(request)
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
