"""Keeps the session of one link going over carrier after carrier. ``failover_policy`` decides; this does.

Every attempt is a new connection to the server that holds the session, its name looked up anew.
"""

from __future__ import annotations

import functools
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from tunnel_agent.attach.failover_policy import Abandon, Action, CarrierStatus, FailoverPolicy, Start
from tunnel_core.reasons import Reason, Refused, Retry
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.session import Session
from tunnel_core.session.state import SessionEvent
from tunnel_core.telemetry.logs import log_event

_log = logging.getLogger("qanat.attach")

_LINGER_SECONDS = 2.0


class Attach(Protocol):
    """Makes a carrier for the link's session and takes it to the welcome. Raises ``Refused``.

    ``connected`` is asked between the two: whether the hello shall say ``use``. ``decide`` is for
    ``Attachment``.
    """

    async def __call__(
        self,
        response_timeout_seconds: float,
        connected: Callable[[], bool],
        decide: Callable[[Attachment], None],
    ) -> Attachment: ...


class SessionFailover:
    """Runs beside its link, and ends with it.

    ``offered``: a server that does not know the session offers a new one with this attempt, which whoever
    ran the resumer is to use or to abandon.

    ``on_state_change`` is called with each event of the link, and with None whenever it may stand otherwise
    without one. ``on_carried`` is called for each carrier that the link was moved to, its first included.
    """

    def __init__(
        self,
        link: Session,
        attach: Attach,
        *,
        response_timeout_seconds: float,
        max_wait_seconds: float,
        on_state_change: Callable[[SessionEvent | None], None],
        on_carried: Callable[[], Awaitable[None]],
        attempt_seconds: float = 1.5,
    ) -> None:
        self._link = link
        self._attach = attach
        self._on_look = on_state_change
        self._on_carried = on_carried
        self._attempts = FailoverPolicy(
            response_timeout_seconds=response_timeout_seconds,
            max_wait_seconds=max_wait_seconds,
            attempt_seconds=attempt_seconds,
        )
        self.offered: Attachment | None = None
        self._scopes: dict[int, trio.CancelScope] = {}
        self._timer = trio.CancelScope()
        self._left: Attachment | None = None
        link.on_event = self._on_event

    def route_changed(self) -> None:
        """The kernel has another way to the server now: the carrier may be dead, and says nothing."""
        way = self._link.attachment
        if way is not None and way.carrier.lost_local_address():
            self._link.carrier_lost("the address that it went out from is no longer this machine's")
        self._attempts.route_changed()
        self._look()

    def refresh(self) -> None:
        """The session shall go over to a new carrier, which shows what this node shows now."""
        self._attempts.refresh()
        self._look()

    def _on_event(self, _: Session, event: SessionEvent) -> None:
        link = self._link
        if event is SessionEvent.RESUMED:
            log_event(_log, logging.INFO, "resumed the session", session=link.session_id)
        elif event is SessionEvent.LOST and link.lost is not None:
            sentence = f"the link was lost: {link.lost.detail}; its streams wait"
            fields = {"reason": link.lost.reason, "streams": len(link.streams)}
            log_event(_log, logging.WARNING, sentence, session=link.session_id, **fields)
        self._on_look(event)
        self._look()

    def _look(self) -> None:
        self._timer.cancel()

    async def run(self) -> None:
        """Replaces carriers until the link has ended, or until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_around, nursery)
            nursery.start_soon(self._on_carried)
            await self._link.wait_ended()
            nursery.cancel_scope.cancel()

    async def _look_around(self, nursery: trio.Nursery) -> None:
        while True:
            self._on_look(None)  # no event tells of a late answer that came
            now, chance = trio.current_time(), random.random()  # noqa: S311 - spreads load
            self._act(self._attempts.poll(now, self._carried(), chance), nursery)
            is_late = self._link.statistics().late_since < math.inf
            if self._link.attachment is not None:  # lets another carrier through beside it
                self._link.attachment.carrier.throttle(enabled=self._attempts.is_trying and is_late)
            with trio.CancelScope(deadline=self._next_look()) as self._timer:
                await trio.sleep_forever()

    def _next_look(self) -> float:
        """While something is late, each answer may be the one that ends it: look again soon."""
        if self._attempts.due == math.inf and not self._scopes:
            return math.inf
        return min(
            self._attempts.due, trio.current_time() + self._link.statistics().response_timeout_seconds / 4
        )

    def _carried(self) -> CarrierStatus:
        now = self._link.statistics()
        return CarrierStatus(
            self._link.lost is not None,
            now.is_silent,
            now.last_received_at,
            now.response_timeout_seconds,
            now.late_since,
        )

    def _act(self, actions: list[Action], nursery: trio.Nursery) -> None:
        for action in actions:
            if isinstance(action, Abandon):
                self._abandon(action.number)
            else:
                self._link.ping_now()
                nursery.start_soon(self._try, action)

    def _abandon(self, number: int) -> None:
        scope = self._scopes.get(number)
        if scope is not None:
            scope.cancel()

    async def _try(self, start: Start) -> None:
        number, used = start.number, False
        with trio.CancelScope() as self._scopes[number]:
            connected = functools.partial(self._connected, number)
            try:
                attempt = await self._attach(
                    start.response_timeout_seconds, connected, functools.partial(self._welcomed, number)
                )
                used = attempt.is_used
            except Refused as refused:
                self._note_failure(refused)
        del self._scopes[number]
        self._attempts.failed(number)
        self._look()
        if used:
            try:
                await self._on_carried()
            finally:
                await self._let_go()

    async def _let_go(self) -> None:
        """What was left without a fault is closed by the server, when that has heard of the move."""
        old, self._left = self._left, None
        if old is not None:
            try:
                await trio.sleep(_LINGER_SECONDS)
            finally:
                old.abandon()

    def _connected(self, number: int) -> bool:
        """The server was reached: whether the session moves with the hello."""
        return self._link.ended is None and self._attempts.connected(number, self._carried())

    def _welcomed(self, number: int, attempt: Attachment) -> None:
        """The server answered: move, or stay with what is there. Raises ``Refused``."""
        link = self._link
        if link.ended is not None or not self._attempts.welcomed(number, self._carried()):
            attempt.abandon()
        elif not attempt.welcome.resumed:
            attempt.keep()
            self.offered = attempt
            link.end(Reason.UNKNOWN_SESSION)
        else:
            self._use(attempt)
            for action in self._attempts.moved(trio.current_time()):
                self._abandon(action.number)

    def _use(self, attempt: Attachment) -> None:
        old = self._link.attachment if self._attempts.refreshes else None
        if old is not None:
            old.close_delayed = True
        try:
            attempt.use(self._link)
        except BaseException:
            if old is not None:
                old.close_delayed = False
            raise
        self._left = old

    def _note_failure(self, refused: Refused) -> None:
        if refused.reason.retry is Retry.SAME_SESSION:
            log_event(_log, logging.INFO, f"not resumed yet: {refused.detail}", reason=refused.reason)
        else:
            self._link.end(refused.reason, refused.detail)
