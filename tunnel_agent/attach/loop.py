"""Keeps the node attached: to the first server that answers, again and again, without haste.

1. A round tries the servers in their order; the first that welcomes us is kept until its session
   ends. Each try makes a new connection, so a name is looked up anew each time.
2. After a round without success, or a session that ended young, wait: exponential with full jitter
   and a cap (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). After a
   session that lived the back-off starts over, still with jitter: a fleet that lost its server must
   not come back in one instant.
3. A server that says when to come back is obeyed, up to a bound.
4. "Taken over" means that another program attached as this node. To answer at once would throw that
   one out in turn, for ever: such an end waits at least a third of the cap, 10 s. The server then knows
   that both are alive, and keeps the other one (``nodes/takeovers.py``).
5. A server that does not know the session any more has been restarted, and offered another one when the
   agent came to resume: that is taken at once. The fleet is spread already, as its attempts were.
6. A certificate that has ended or was revoked is of no use until somebody acts: five minutes from try to
   try, each with one line that says what to do. ``retry_now`` ends such a wait when there is another.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import tenacity
import trio

from tunnel_agent.checks import REJOIN
from tunnel_agent.status.state import AgentState, AttachedLink
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
"""For whoever installs a node; one that was attached before has another kind of trouble."""

OpenLink = Callable[[str], AbstractAsyncContextManager[AttachedLink]]
"""Attaches to a server (``host:port``) and yields the attached link; raises ``Refused`` if it cannot.

Leaving the context gives the link up.
"""


class AttachFailed(Exception):  # noqa: N818 - named by what happened
    """A round in which no session lived. The next wait is at least ``wait_seconds``."""

    def __init__(self, wait_seconds: float = 0.0) -> None:
        super().__init__(wait_seconds)
        self.wait_seconds = wait_seconds


class AttachLoop:
    """The attach loop of one agent. ``state`` tells the rest of the program where it stands.

    ``certificate_problem`` says what is wrong with the certificate, and whether for good: empty if it is
    good.
    """

    def __init__(
        self,
        open_link: OpenLink,
        state: AgentState,
        counters: Counters,
        *,
        max_wait_seconds: float,
        certificate_problem: Callable[[], tuple[str, bool]] = lambda: ("", False),
    ) -> None:
        self._open_link = open_link
        self._state = state
        self._counters = counters
        self._max_wait = max_wait_seconds
        self._certificate_problem = certificate_problem
        self._nap = trio.CancelScope()
        self._jitter = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=max_wait_seconds)

    async def run(self) -> None:
        """Stays attached until cancelled, or until the first end or failure after ``state.stopping``."""
        while not self._state.is_stopping:
            if await self._until_a_session_lived() is not Reason.UNKNOWN_SESSION:
                await self._pause(random.uniform(0, _FIRST_WAIT_SECONDS))  # noqa: S311 - spreads load

    async def _until_a_session_lived(self) -> Reason | None:
        """Returns why it ended; None if there will be no other."""
        again = tenacity.retry_if_exception_type(AttachFailed)
        return await tenacity.AsyncRetrying(sleep=self._pause, wait=self._wait, retry=again)(self._round)

    def _wait(self, attempt: tenacity.RetryCallState) -> float:
        failure = attempt.outcome.exception() if attempt.outcome else None
        at_least = failure.wait_seconds if isinstance(failure, AttachFailed) else 0.0
        return max(self._jitter(attempt), at_least)

    async def _pause(self, seconds: float) -> None:
        if self._state.is_stopping:
            return
        self._state.waiting(seconds)
        level = logging.DEBUG if seconds >= HOPELESS_SECONDS else logging.INFO  # the line before says it
        log_event(_log, level, f"next attempt in {seconds:.1f} s")
        with trio.CancelScope() as self._nap:
            await trio.sleep(seconds)

    def retry_now(self) -> None:
        """Another certificate is there: whoever waits tries at once."""
        self._nap.cancel()

    async def _round(self) -> Reason | None:
        """Tries each server once; returns why the session ended. Raises ``AttachFailed`` unless one lived."""
        wait_seconds = 0.0
        for server in self._state.servers:
            if self._state.is_stopping:
                return None
            self._state.connecting(server)
            try:
                async with self._open_link(server) as link:
                    ended, age = await self._stay(server, link)
            except Refused as error:
                self._counters.attached(error.reason)
                self._note_failure(server, error)
                wait_seconds = max(wait_seconds, _advice_of(error))
                continue
            finally:
                self._state.detached()
            if ended.retry is Retry.AFTER_REPAIR:
                raise AttachFailed(HOPELESS_SECONDS)
            if age >= YOUNG_SECONDS and ended is not Reason.TAKEN_OVER:
                return ended
            raise AttachFailed(self._max_wait / _TAKEN_OVER_SHARE if ended is Reason.TAKEN_OVER else 0.0)
        raise AttachFailed(wait_seconds)

    def _note_failure(self, server: str, error: Refused) -> None:
        """One line; raises ``AttachFailed`` if no other server needs to be asked."""
        sentence, for_good = self._certificate_problem()
        what = f"cannot attach to {server}: {error.detail}"
        reason = Reason.CERTIFICATE_EXPIRED if for_good else error.reason
        if error.reason.retry is Retry.AFTER_REPAIR and not sentence:
            sentence = REJOIN
        if for_good or error.reason.retry is Retry.AFTER_REPAIR:
            seconds = HOPELESS_SECONDS * random.uniform(1, 1.1)  # noqa: S311 - spreads load
            text = f"{what}; {sentence}; next attempt in {seconds:.0f} s"
            self._state.trouble(text)
            log_event(_log, logging.WARNING, text, reason=reason)
            raise AttachFailed(seconds)
        self._trouble(f"{what}; {sentence}" if sentence else what, reason)

    async def _stay(self, server: str, link: AttachedLink) -> tuple[Reason, float]:
        """Waits for the end of a session; returns its reason and the session's age in seconds."""
        start = trio.current_time()
        self._state.attached(link)
        self._counters.attached()
        log_event(
            _log, logging.INFO, f"attached to {server}", session=link.session_id, software=link.software
        )
        reason, detail = await link.wait_ended()
        self._state.detached(reason, detail)
        self._counters.session_ended(reason)
        what = f"session {link.session_id} with {server} ended: {detail}"
        if reason is Reason.TAKEN_OVER:
            node = self._state.node
            what += (
                f"; another agent runs as {node}: give each machine and each container a bundle of its own"
            )
        elif reason.retry is Retry.AFTER_REPAIR:
            what += f"; {REJOIN}; next attempt in {HOPELESS_SECONDS:.0f} s"
        self._trouble(what, reason)
        return reason, trio.current_time() - start

    def _trouble(self, text: str, reason: Reason) -> None:
        self._state.trouble(text)
        hint = "" if self._state.sessions else _HINT
        log_event(_log, logging.WARNING, text, reason=reason, hint=hint)


def _advice_of(error: Refused) -> float:
    if not isinstance(error, AttachRejected):
        return 0.0
    return min(error.retry_after_seconds, _MAX_OBEYED_SECONDS)
