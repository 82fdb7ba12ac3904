"""Keep the node attached to the first server that answers, with a back-off between attempts.

1. A round tries the servers in their order. The first server that welcomes the agent is kept until its
   session ends. Each try makes a new connection, so the agent looks up the name each time.
2. After a round without success, or a session that ended young, the agent waits: exponential with full
   jitter and a cap (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). After a
   longer session the back-off starts over, still with jitter, because a fleet that lost its server must
   not come back in one instant.
3. The agent obeys a server's time to retry, up to ten minutes.
4. ``taken_over`` means that another program attached as this node. An immediate attach would end the other
   program's session in turn, for ever. So the agent waits at least a third of the cap, 10 s. The server then
   knows that both programs are alive, and keeps the other one (``nodes/takeovers.py``).
5. A server that no longer knows the session has restarted, and offered a new session to the agent's attempt
   to resume. The agent uses the offer at once. The fleet is spread already, because its attempts were.
6. A certificate that expired or was revoked needs a repair. The agent retries every five minutes, with one
   log line that names the repair. ``retry_now`` ends the wait when a new certificate is there.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import tenacity
import trio

from tunnel_agent.checks import REJOIN
from tunnel_agent.status.state import AgentState, AttachedSession
from tunnel_core.reasons import Reason, Refused, Retry
from tunnel_core.session.handshake import AttachRejected
from tunnel_core.telemetry.counters import Counters
from tunnel_core.telemetry.logs import log_event

_log = logging.getLogger("qanat.attach")

YOUNG_SECONDS = 20.0
"""A session that ended before this age counts as a failure for the back-off."""
_FIRST_WAIT_SECONDS = 1.0
_MAX_OBEYED_SECONDS = 600.0
_TAKEN_OVER_SHARE = 3
HOPELESS_SECONDS = 300.0
"""Time between two attaches with a certificate that has expired or was revoked. Only a person can help."""
_HINT = "qanat-agent check shows which step fails"
"""Hint for a new node. A node that was attached before has another kind of trouble."""

OpenSession = Callable[[str], AbstractAsyncContextManager[AttachedSession]]
"""Attaches to a server (``host:port``) and yields the session. Raises ``Refused`` if the attach fails.

Leaving the context ends the session.
"""


class AttachFailed(Exception):  # noqa: N818 - named after the event
    """A round in which no session lived. The next wait is at least ``wait_seconds``."""

    def __init__(self, wait_seconds: float = 0.0) -> None:
        super().__init__(wait_seconds)
        self.wait_seconds = wait_seconds


class AttachLoop:
    """Attach loop of one agent. It writes its progress to ``state``, which the status page reads.

    ``certificate_problem`` returns a sentence about the certificate, empty if it is good, and whether the
    problem is permanent. ``max_wait_seconds`` caps the back-off.
    """

    def __init__(
        self,
        open_session: OpenSession,
        state: AgentState,
        counters: Counters,
        *,
        max_wait_seconds: float,
        certificate_problem: Callable[[], tuple[str, bool]] = lambda: ("", False),
    ) -> None:
        self._open_session = open_session
        self._state = state
        self._counters = counters
        self._max_wait = max_wait_seconds
        self._certificate_problem = certificate_problem
        self._pause_scope = trio.CancelScope()
        self._jitter = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=max_wait_seconds)

    async def run(self) -> None:
        """Stay attached until the first end or failure after ``state.stopping``.

        Cancellation ends the session without a ``bye``.
        """
        while not self._state.is_stopping:
            if await self._attach_with_retries() is not Reason.UNKNOWN_SESSION:
                await self._pause(random.uniform(0, _FIRST_WAIT_SECONDS))  # noqa: S311 - spreads load

    async def _attach_with_retries(self) -> Reason | None:
        """Repeat rounds until a session lived; return why it ended, or None if the agent is stopping."""
        on_failure = tenacity.retry_if_exception_type(AttachFailed)
        retrying = tenacity.AsyncRetrying(sleep=self._pause, wait=self._wait_seconds, retry=on_failure)
        return await retrying(self._round)

    def _wait_seconds(self, attempt: tenacity.RetryCallState) -> float:
        failure = attempt.outcome.exception() if attempt.outcome else None
        least_seconds = failure.wait_seconds if isinstance(failure, AttachFailed) else 0.0
        return max(self._jitter(attempt), least_seconds)

    async def _pause(self, seconds: float) -> None:
        if self._state.is_stopping:
            return
        self._state.waiting(seconds)
        level = logging.DEBUG if seconds >= HOPELESS_SECONDS else logging.INFO  # the warning has the time
        log_event(_log, level, f"next attempt in {seconds:.1f} s")
        with trio.CancelScope() as self._pause_scope:
            await trio.sleep(seconds)

    def retry_now(self) -> None:
        """End the present wait, because there is a new certificate."""
        self._pause_scope.cancel()

    async def _round(self) -> Reason | None:
        """Try each server once; return why the session ended. Raise ``AttachFailed`` if no session lived."""
        wait_seconds = 0.0
        for server in self._state.servers:
            if self._state.is_stopping:
                return None
            self._state.connecting(server)
            try:
                async with self._open_session(server) as session:
                    reason, age = await self._stay(server, session)
            except Refused as error:
                self._counters.attached(error.reason)
                self._note_failure(server, error)
                wait_seconds = max(wait_seconds, _retry_after(error))
                continue
            finally:
                self._state.detached()
            if reason.retry is Retry.AFTER_REPAIR:
                raise AttachFailed(HOPELESS_SECONDS)
            if age >= YOUNG_SECONDS and reason is not Reason.TAKEN_OVER:
                return reason
            raise AttachFailed(self._max_wait / _TAKEN_OVER_SHARE if reason is Reason.TAKEN_OVER else 0.0)
        raise AttachFailed(wait_seconds)

    def _note_failure(self, server: str, error: Refused) -> None:
        """Log one line. Raise ``AttachFailed`` if another server would refuse the agent as well."""
        problem, is_permanent = self._certificate_problem()
        text = f"cannot attach to {server}: {error.detail}"
        reason = Reason.CERTIFICATE_EXPIRED if is_permanent else error.reason
        if error.reason.retry is Retry.AFTER_REPAIR and not problem:
            problem = REJOIN
        if is_permanent or error.reason.retry is Retry.AFTER_REPAIR:
            seconds = HOPELESS_SECONDS * random.uniform(1, 1.1)  # noqa: S311 - spreads load
            text = f"{text}; {problem}; next attempt in {seconds:.0f} s"
            self._state.trouble(text)
            log_event(_log, logging.WARNING, text, reason=reason)
            raise AttachFailed(seconds)
        self._note_trouble(f"{text}; {problem}" if problem else text, reason)

    async def _stay(self, server: str, session: AttachedSession) -> tuple[Reason, float]:
        """Wait for the end of a session; return its reason and the session's age in seconds."""
        start = trio.current_time()
        self._state.attached(session)
        self._counters.attached()
        log_event(
            _log, logging.INFO, f"attached to {server}", session=session.session_id, software=session.software
        )
        reason, detail = await session.wait_ended()
        self._state.detached(reason, detail)
        self._counters.session_ended(reason)
        text = f"session {session.session_id} with {server} ended: {detail}"
        if reason is Reason.TAKEN_OVER:
            node = self._state.node
            text += (
                f"; another agent runs as {node}: give each machine and each container a bundle of its own"
            )
        elif reason.retry is Retry.AFTER_REPAIR:
            text += f"; {REJOIN}; next attempt in {HOPELESS_SECONDS:.0f} s"
        self._note_trouble(text, reason)
        return reason, trio.current_time() - start

    def _note_trouble(self, text: str, reason: Reason) -> None:
        self._state.trouble(text)
        hint = "" if self._state.sessions else _HINT
        log_event(_log, logging.WARNING, text, reason=reason, hint=hint)


def _retry_after(error: Refused) -> float:
    if not isinstance(error, AttachRejected):
        return 0.0
    return min(error.retry_after_seconds, _MAX_OBEYED_SECONDS)
