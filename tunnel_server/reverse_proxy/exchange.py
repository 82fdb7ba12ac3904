"""One request of a browser and its answer, over one stream.

1. The request head travels inside the ``open``, before the agent answers the dial. So the first byte of the
   answer arrives after one round trip.
2. One task sends the request's body, and then watches the browser's connection. If the browser breaks the
   connection, the stream is reset at once, even during a silent answer. The end of input does not count.
3. Every chunk is forwarded on arrival. No content type is buffered.
4. A request is never retried, because the target may already have acted on a POST. If the stream is lost,
   the browser gets a 502.
5. If the answer is truncated, the browser's connection is aborted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import h11
import trio

from tunnel_core.http.client import HttpClientConnection
from tunnel_core.http.head import HeadLimits
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tunnel_stream import StreamReset
from tunnel_server.access.opener import Opener, StreamRequest, UserStream, reason_of
from tunnel_server.reverse_proxy.headers import request_forward, response_back, switch_back
from tunnel_server.reverse_proxy.messages import AnswerEnd, AnswerHead, Browser

# Security headers of dashboards take several KiB, so the bound of a request would refuse real pages.
_ANSWER_LIMITS = HeadLimits(max_head_bytes=64 * 1024)
ANSWER_SECONDS = 300.0
"""Longest time from the sent request to the target's answer. Slow reports take minutes."""


def head_of(*events: h11.Event) -> bytes:
    """Return the bytes of ``events``, to be sent inside the ``open`` of a stream."""
    connection = h11.Connection(h11.CLIENT)
    return b"".join(connection.send(event) or b"" for event in events)


class Exchange:
    """One request of ``browser``. ``target_name`` names the target in messages."""

    def __init__(self, browser: Browser, target_name: str) -> None:
        self._browser = browser
        self._target_name = target_name
        self._has_body = browser.request.has_body
        head = request_forward(browser.request)
        self._head: list[h11.Event] = [head] if self._has_body else [head, h11.EndOfMessage()]
        self._target: HttpClientConnection
        self._user_stream: UserStream
        self._answer_timeout = trio.CancelScope()
        self._refused: Refused | None = None
        self._switch: AnswerHead | None = None

    async def run(self, opener: Opener, wanted: StreamRequest) -> None:
        """Open the stream, forward the request, and send the answer to the browser.

        Raises ``Refused``. If the answer has begun by then, the browser's connection is already aborted.
        """
        async with opener.open(wanted, head_of(*self._head)) as self._user_stream:
            self._target = HttpClientConnection(self._user_stream.stream, _ANSWER_LIMITS, self._target_name)
            self._target.encode(*self._head)  # The bytes were already sent inside the open.
            await self._exchange()
            if self._refused is not None:
                if self._browser.has_answered:
                    self._browser.abort(self._refused.reason)
                # A new exception, because the traceback of the kept one would form a cycle with this object.
                raise Refused(self._refused.reason, self._refused.detail)
            if self._switch is not None:
                await self._relay_switched(self._switch)

    async def _exchange(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guard, self._send_request, nursery)
            await self._guard(self._receive_answer, nursery)
            nursery.cancel_scope.cancel()

    async def _guard(self, step: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        """Run ``step``. If it is refused, end the other step, and keep the first refusal for ``run``.

        The nursery would wrap the refusal in a group.
        """
        try:
            await step()
        except (Refused, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._refused = self._refused or Refused(*reason_of(error))
            nursery.cancel_scope.cancel()

    # The request.

    async def _send_request(self) -> None:
        # A target may answer without reading the whole body. Its answer counts, not the reset.
        with contextlib.suppress(StreamReset):
            if self._has_body:
                await self._send_body()
        self._answer_timeout.deadline = trio.current_time() + ANSWER_SECONDS
        await self._watch_browser()

    async def _send_body(self) -> None:
        if self._browser.request.expects_continue:
            await self._browser.send(AnswerHead(100, [], b"Continue"))
        while piece := await self._browser.receive_body():
            await self._target.send(h11.Data(data=piece))
        await self._target.send(h11.EndOfMessage())

    async def _watch_browser(self) -> None:
        await self._browser.wait_left()
        raise Refused(Reason.USER_LEFT)

    # The answer.

    async def _receive_answer(self) -> None:
        with self._answer_timeout:
            response = await self._target.receive_response()
        if self._answer_timeout.cancelled_caught:
            detail = f"{self._target_name} did not begin to answer within {ANSWER_SECONDS:g} s"
            raise Refused(Reason.TARGET_TIMEOUT, detail)
        self._user_stream.first_byte()
        head = AnswerHead(response.status_code, response.headers.raw_items(), response.reason)
        if head.status == 101:
            self._switch = switch_back(head)
            return
        await self._browser.send(response_back(head))
        async with contextlib.aclosing(self._target.receive_body()) as pieces:
            async for piece in pieces:
                await self._browser.send(piece)
        await self._browser.send(AnswerEnd())

    async def _relay_switched(self, switch: AnswerHead) -> None:
        stream, from_browser = await self._browser.switch(switch)
        from_target = self._target.switch()
        if from_target:
            await stream.send_all(from_target)
        if from_browser:
            await self._user_stream.stream.send_all(from_browser)
        await self._user_stream.relay(stream)
