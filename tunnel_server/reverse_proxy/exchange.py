"""One request of a browser and its answer, over a connection to the target.

1. The request head on a new stream travels inside the ``open``, before the agent answers the dial. So the
   first byte of the answer arrives after one round trip.
2. Every piece is forwarded on arrival: interim answers, chunks, trailers. No content type is buffered. What
   has arrived together is sent to the browser in one write.
3. An answer that does not come within ``WATCH_SECONDS`` gets a task that sends the request's body, and then
   watches the browser's connection. If the browser breaks the connection, the stream is reset at once, even
   during a silent answer. The end of input does not count.
4. A request is sent again only if it is safe (RFC 9110 section 9.2.1) and without body, and the target
   closed an idle connection before any byte of an answer. Otherwise the target may have acted on it: the
   browser gets a 502.
5. If the answer is truncated, the browser's connection is aborted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tunnel_stream import StreamReset
from tunnel_server.access.opener import NotOpened, StreamRequest, reason_of
from tunnel_server.reverse_proxy.headers import (
    binds_connection,
    interim_back,
    request_forward,
    response_back,
    switch_back,
    trailers_back,
    trailers_forward,
    upgrade_of,
)
from tunnel_server.reverse_proxy.hosts import Hosts
from tunnel_server.reverse_proxy.messages import AnswerEnd, AnswerEvent, AnswerHead, Browser
from tunnel_server.reverse_proxy.pool import TargetPool
from tunnel_server.reverse_proxy.requests import encode_end, encode_head, encode_piece
from tunnel_server.reverse_proxy.target_connection import TargetConnection

ANSWER_SECONDS = 2 * 3600.0
"""Longest time from the sent request, or from an interim answer, to the target's next one. Long polls last an
hour, and a browser that leaves ends the wait."""
CONTINUE_SECONDS = 1.0
"""Time for which ``Expect: 100-continue`` waits for the target, as in curl. Old targets ignore the header."""
WATCH_SECONDS = 0.1
"""Time from the request to the task that watches the browser. Most answers are complete before, and the task
costs as much as the rest of a small request."""
_SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class Exchange:
    """One request of ``browser``. ``target_name`` names the target in messages.

    ``hosts``: how the target knows its own address. ``claims``: whether it reads ``X-Forwarded-*``.
    """

    def __init__(
        self, browser: Browser, target_name: str, pool: TargetPool, hosts: Hosts, *, claims: bool
    ) -> None:
        request = browser.request
        self._hosts = hosts
        self._browser = browser
        self._target_name = target_name
        self._pool = pool
        self._upgrade = upgrade_of(request)
        self._request = request_forward(request, hosts, persists=pool.keeps, claims=claims)
        self._head = encode_head(self._request)
        self._may_repeat = request.method in _SAFE and not request.has_body and not self._upgrade
        self._target: TargetConnection
        self._has_sent = not request.has_body
        self._has_continued = False
        self._continued = trio.Event()
        self._is_answered = False
        self._answer_by = float("inf")
        self._waiting = trio.CancelScope()
        self._refused: Refused | None = None
        self._switch: AnswerHead | None = None

    async def run(self, wanted: StreamRequest) -> None:
        """Forward the request, and send the answer to the browser.

        Raises ``Refused``. If the answer has begun by then, the browser's connection is already aborted.
        """
        if not self._upgrade:
            source, owner = self._browser.request.source, self._browser.connection
            kept = self._pool.take(wanted, source, owner, may_repeat=self._may_repeat)
            if kept is not None and await self._run_on(kept, wanted, is_new=False):
                return
        target = self._pool.open(wanted, self._target_name, self._head)
        await self._run_on(target, wanted, is_new=True)

    async def _run_on(self, target: TargetConnection, wanted: StreamRequest, *, is_new: bool) -> bool:
        """Return False if the target closed the connection, and the request must be sent on another one."""
        self._target = target
        target.parser.expect_answer(self._request.method)
        try:
            if not is_new:
                await target.send(self._head)
            await self._exchange()
            if self._switch is not None:
                await self._relay_switched(self._switch)
        except (Refused, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if self._may_repeat and target.was_closed_unanswered(error):
                target.user_stream.leave()
                return False
            self._refuse(*reason_of(error))
        except BaseException as error:
            target.user_stream.leave(error)
            raise
        if self._may_keep(target):
            self._pool.give_back(target, wanted, self._browser.request.source)
        else:
            target.user_stream.leave()
        return True

    def _may_keep(self, target: TargetConnection) -> bool:
        """Whether another request may follow on the connection.

        Not after a request for an upgrade, because the target may have switched without a word. Not if the
        connection is logged in and a proxy mixes the requests of several people.
        """
        is_shared_login = target.owner is not None and self._browser.request.is_proxied
        return self._has_sent and not self._upgrade and not is_shared_login

    def _refuse(self, reason: Reason, detail: str) -> NoReturn:
        user_stream = self._target.user_stream
        user_stream.leave(Refused(reason, detail))
        if self._browser.has_answered:
            self._browser.abort(user_stream.verdict[0])
        # A new exception, because the traceback of a kept one would form a cycle with this object.
        raise NotOpened(*user_stream.verdict, user_stream.stream.id) from None

    async def _exchange(self) -> None:
        if self._has_sent:
            with trio.move_on_after(WATCH_SECONDS):
                await self._target.wait_events()
            self._target.read_nowait()
            if self._target.has_whole_answer:
                await self._forward(self._target.take_events())
                return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guard, self._send_request, nursery)
            await self._guard(self._receive_answer, nursery)
            nursery.cancel_scope.cancel()
        if self._refused is not None and not self._is_answered:
            raise Refused(self._refused.reason, self._refused.detail)

    async def _guard(self, step: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        """Run ``step``. If it is refused, end the other step, and keep the first refusal for ``_exchange``.

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
            if not self._has_sent:
                await self._send_body()
        self._await_answer()
        await self._browser.wait_left()
        raise Refused(Reason.USER_LEFT)

    async def _send_body(self) -> None:
        request, is_chunked = self._browser.request, self._request.is_chunked
        if request.expects_continue:
            await self._wait_continue()
        sent = 0
        while piece := await self._browser.receive_body():
            sent += len(piece)
            await self._target.send(encode_piece(piece, is_chunked=is_chunked))
        if request.body_length not in (None, sent):
            raise Refused(Reason.BAD_REQUEST, "the body is not as long as its head announced")
        if end := encode_end(trailers_forward(self._browser.trailers), is_chunked=is_chunked):
            await self._target.send(end)
        self._has_sent = True

    async def _wait_continue(self) -> None:
        with trio.move_on_after(CONTINUE_SECONDS):
            await self._continued.wait()
        if not self._has_continued and not self._browser.has_answered:
            self._has_continued = True
            await self._browser.send(AnswerHead(100, [], b"Continue"))

    def _await_answer(self) -> None:
        self._answer_by = self._waiting.deadline = trio.current_time() + ANSWER_SECONDS

    # The answer.

    async def _receive_answer(self) -> None:
        while not self._is_answered and self._switch is None:
            with trio.CancelScope(deadline=self._answer_by) as self._waiting:
                await self._target.wait_events()
            if self._waiting.cancelled_caught:
                detail = f"{self._target_name} did not begin to answer within {ANSWER_SECONDS:g} s"
                raise Refused(Reason.TARGET_TIMEOUT, detail)
            await self._forward(self._target.take_events())
            if self._browser.has_answered:
                self._answer_by = float("inf")
            elif self._has_sent:
                self._await_answer()

    async def _forward(self, events: list[AnswerEvent]) -> None:
        """Send what has arrived to the browser, in one write."""
        if changed := [event for one in events if (event := self._changed(one)) is not None]:
            await self._browser.send(*changed)
        self._is_answered = isinstance(events[-1], AnswerEnd)

    def _changed(self, event: AnswerEvent) -> AnswerEvent | None:
        """Return the part of the answer as the browser may see it; None if the browser does not get it."""
        if isinstance(event, AnswerHead):
            return self._changed_head(event)
        if isinstance(event, AnswerEnd):
            return AnswerEnd(tuple(trailers_back(event.trailers)))
        return event

    def _changed_head(self, head: AnswerHead) -> AnswerHead | None:
        if head.status == 101:
            self._switch = self._accept_switch(head)
            return None
        if head.status >= 200:
            if binds_connection(self._browser.request, head):
                self._target.owner = self._browser.connection
            return response_back(head, self._hosts)
        if head.status == 100:
            self._continued.set()
            if self._has_continued:
                return None
            self._has_continued = True
        return interim_back(head)

    def _accept_switch(self, head: AnswerHead) -> AnswerHead:
        if not self._has_sent:
            raise Refused(Reason.TARGET_PROTOCOL, "the target switched protocols before it had the request")
        return switch_back(head, self._upgrade)

    async def _relay_switched(self, switch: AnswerHead) -> None:
        stream, from_browser = await self._browser.switch(switch)
        from_target = self._target.parser.rest
        if from_target:
            await stream.send_all(from_target)
        if from_browser:
            await self._target.send(from_browser)
        await self._target.user_stream.relay(stream)
