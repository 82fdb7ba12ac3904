"""Replace the carriers of one session. ``FailoverPolicy`` decides when; this module dials and moves.

Every attempt is a new connection to the server that holds the session, after a new look-up of its name.
"""

from __future__ import annotations

import functools
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from tunnel_agent.attach.failover_policy import Abandon, Action, CarrierStatus, FailoverPolicy, Start
from tunnel_agent.attach.path_probe import Hop, PathProbe
from tunnel_core.reasons import Reason, Refused, Retry
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.session import Session
from tunnel_core.session.state import SessionEvent
from tunnel_core.telemetry.logs import log_event

_log = logging.getLogger("qanat.attach")

_LINGER_SECONDS = 2.0
"""How long a carrier without a fault stays open after a move, so that the server can close it first."""


class Attach(Protocol):
    """Dials a carrier for the session and attaches it up to the welcome. Raises ``Refused``.

    ``on_connected`` is called after the dial and returns whether the hello carries ``use``. ``decide`` is
    for ``Attachment``.
    """

    async def __call__(
        self,
        response_timeout_seconds: float,
        on_connected: Callable[[], bool],
        decide: Callable[[Attachment], None],
    ) -> Attachment: ...


class SessionFailover:
    """Runs beside its session, and ends with it.

    ``offered`` is the attachment on which a server that does not know the session offers a new one. The
    caller of ``run`` uses or abandons it.

    ``on_state_change`` is called with each event of the session, and with None whenever the state may have
    changed without an event. ``on_carried`` is called for each carrier of the session, also for the first.
    ``hops`` returns the addresses whose answer shows that a dead path is back; none, and no probes are sent.
    """

    def __init__(
        self,
        session: Session,
        attach: Attach,
        *,
        response_timeout_seconds: float,
        max_wait_seconds: float,
        on_state_change: Callable[[SessionEvent | None], None],
        on_carried: Callable[[], Awaitable[None]],
        attempt_seconds: float = 1.5,
        hops: Callable[[], Sequence[Hop]] = tuple,
    ) -> None:
        self._session = session
        self._attach = attach
        self._on_state_change = on_state_change
        self._on_carried = on_carried
        self._policy = FailoverPolicy(
            response_timeout_seconds=response_timeout_seconds,
            max_wait_seconds=max_wait_seconds,
            attempt_seconds=attempt_seconds,
        )
        self._hops = hops
        self.offered: Attachment | None = None
        self._scopes: dict[int, trio.CancelScope] = {}
        self._timer = trio.CancelScope()
        self._old: Attachment | None = None
        session.on_event = self._on_event

    def route_changed(self) -> None:
        """Note a new route to the server, because the carrier may be dead without an error."""
        attachment = self._session.attachment
        if attachment is not None and attachment.carrier.lost_local_address():
            self._session.carrier_lost("this machine no longer has the address that the carrier used")
        self._policy.route_changed()
        self._wake()

    def _path_returned(self, since: float) -> None:
        self._policy.path_returned(since)
        self._wake()

    def refresh(self) -> None:
        """Move the session to a new carrier, which presents the node's present certificate."""
        self._policy.refresh()
        self._wake()

    def _on_event(self, _: Session, event: SessionEvent) -> None:
        session = self._session
        if event is SessionEvent.RESUMED:
            log_event(_log, logging.INFO, "resumed the session", session=session.session_id)
        elif event is SessionEvent.LOST and session.lost is not None:
            sentence = f"the link was lost: {session.lost.detail}; its streams wait"
            fields = {"reason": session.lost.reason, "streams": len(session.streams)}
            log_event(_log, logging.WARNING, sentence, session=session.session_id, **fields)
        self._on_state_change(event)
        self._wake()

    def _wake(self) -> None:
        self._timer.cancel()

    async def run(self) -> None:
        """Replace carriers until the session has ended. Cancellation abandons the attempts under way."""
        probe = PathProbe(self._hops, self._path_returned)  # no attribute, which would be a cycle
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._poll_policy, nursery, probe)
            nursery.start_soon(probe.run)
            nursery.start_soon(self._on_carried)
            await self._session.wait_ended()
            nursery.cancel_scope.cancel()

    async def _poll_policy(self, nursery: trio.Nursery, probe: PathProbe) -> None:
        while True:
            self._on_state_change(None)  # no event reports the arrival of a late answer
            now, chance = trio.current_time(), random.random()  # noqa: S311 - spreads load
            status = self._carrier_status()
            self._act(self._policy.poll(now, status, chance), nursery)
            probe.enable(wanted=self._policy.may_probe(now, status))
            is_late = self._session.statistics().late_since < math.inf
            if self._session.attachment is not None:  # leaves bandwidth to the attempt beside it
                self._session.attachment.carrier.throttle(enabled=self._policy.is_trying and is_late)
            with trio.CancelScope(deadline=self._next_poll_at()) as self._timer:
                await trio.sleep_forever()

    def _next_poll_at(self) -> float:
        """Return when to poll next: soon while an answer is late, because any answer may end the trouble."""
        if self._policy.due == math.inf and not self._scopes:
            return math.inf
        response_timeout_seconds = self._session.statistics().response_timeout_seconds
        return min(self._policy.due, trio.current_time() + response_timeout_seconds / 4)

    def _carrier_status(self) -> CarrierStatus:
        statistics = self._session.statistics()
        return CarrierStatus(
            self._session.lost is not None,
            statistics.is_silent,
            statistics.last_received_at,
            statistics.response_timeout_seconds,
            statistics.late_since,
        )

    def _act(self, actions: list[Action], nursery: trio.Nursery) -> None:
        for action in actions:
            if isinstance(action, Abandon):
                self._abandon(action.number)
            else:
                self._session.ping_now()
                nursery.start_soon(self._try, action)

    def _abandon(self, number: int) -> None:
        scope = self._scopes.get(number)
        if scope is not None:
            scope.cancel()

    async def _try(self, start: Start) -> None:
        number, used = start.number, False
        with trio.CancelScope() as self._scopes[number]:
            on_connected = functools.partial(self._connected, number)
            decide = functools.partial(self._welcomed, number)
            try:
                attachment = await self._attach(start.response_timeout_seconds, on_connected, decide)
                used = attachment.is_used
            except Refused as refused:
                self._note_failure(refused)
        del self._scopes[number]
        self._policy.failed(number)
        self._wake()
        if used:
            try:
                await self._on_carried()
            finally:
                await self._abandon_old()

    async def _abandon_old(self) -> None:
        """Abandon the old carrier of a refresh, after the server had time to see the move and to close it."""
        old, self._old = self._old, None
        if old is not None:
            try:
                await trio.sleep(_LINGER_SECONDS)
            finally:
                old.abandon()

    def _connected(self, number: int) -> bool:
        """Whether the session moves with the hello, now that attempt ``number`` has reached the server."""
        return self._session.ended is None and self._policy.connected(number, self._carrier_status())

    def _welcomed(self, number: int, attachment: Attachment) -> None:
        """Move the session to ``attachment``, or abandon it. Raises ``Refused``."""
        session = self._session
        if session.ended is not None or not self._policy.welcomed(number, self._carrier_status()):
            attachment.abandon()
        elif not attachment.welcome.resumed:
            attachment.keep()
            self.offered = attachment
            session.end(Reason.UNKNOWN_SESSION)
        else:
            self._use(attachment)
            for action in self._policy.moved(trio.current_time()):
                self._abandon(action.number)

    def _use(self, attachment: Attachment) -> None:
        old = self._session.attachment if self._policy.refreshes else None
        if old is not None:
            old.close_delayed = True
        try:
            attachment.use(self._session)
        except BaseException:
            if old is not None:
                old.close_delayed = False
            raise
        self._old = old

    def _note_failure(self, refused: Refused) -> None:
        if refused.reason.retry is Retry.SAME_SESSION:
            log_event(_log, logging.INFO, f"not resumed yet: {refused.detail}", reason=refused.reason)
        else:
            self._session.end(refused.reason, refused.detail)
