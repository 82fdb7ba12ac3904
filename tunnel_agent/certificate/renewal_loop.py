"""Renew the certificate of a running agent in time, and load a bundle that replaces the old one.

``qanat-agent renew`` does the renewal in a process of its own; the loop waits, starts it and reads the file.
The next attaches use the new bundle, and the session moves to a carrier that presents the new certificate.
The server ends a session when the certificate of its carrier expires.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import trio

from certs.bundle import Bundle
from tunnel_agent.certificate.bundle_watcher import BundleWatcher
from tunnel_agent.certificate.renewal_schedule import POLL_SECONDS, RenewalPlan, plan_after
from tunnel_agent.status.state import AgentState
from tunnel_core.humanize import as_minute
from tunnel_core.reasons import Reason
from tunnel_core.telemetry.logs import log_event

_log = logging.getLogger("qanat.renewal")

_RENEWAL_SECONDS = 180.0
_MAX_ERROR_CHARACTERS = 500


class Renewal:
    """Renewal loop of one agent.

    ``command`` returns the command of a renewal. ``use_bundle`` is called with each new bundle. ``now``
    returns UTC.
    """

    def __init__(
        self,
        watcher: BundleWatcher,
        state: AgentState,
        command: Callable[[], Sequence[str]],
        use_bundle: Callable[[Bundle], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._watcher = watcher
        self._state = state
        self._command = command
        self._use_bundle = use_bundle
        self._now = now
        self._plan = self._new_plan(renewed=False)

    def _new_plan(self, *, renewed: bool) -> RenewalPlan | None:
        validity, chance = self._watcher.validity, random.random()  # noqa: S311 - spreads load
        plan = plan_after(validity, trio.current_time(), chance, renewed=renewed) if validity else None
        self._state.certificate = validity
        self._state.renews_at = plan.at if plan else None
        return plan

    async def run(self) -> None:
        """Renew until cancelled. Cancellation leaves no process, and the bundle either old or new."""
        while True:
            self._reload(renewed=False)
            wait = self._wait_seconds()
            if wait > 0:
                await trio.sleep(min(wait, POLL_SECONDS))
            else:
                await self._renew()

    def _reload(self, *, renewed: bool) -> bool:
        """Load the bundle if its file changed. Return whether the certificate is another one now."""
        old_chain_pem = self._watcher.bundle.chain_pem
        if not self._watcher.reload_if_changed():
            return False
        self._use_bundle(self._watcher.bundle)
        if self._watcher.bundle.chain_pem == old_chain_pem:
            return False  # only roots or addresses changed
        self._plan = self._new_plan(renewed=renewed)
        validity = self._watcher.validity
        ends = as_minute(validity.ends) if validity else "an unknown time"
        sentence = "renewed the certificate" if renewed else "loaded another certificate"
        serial = validity.serial if validity else None
        log_event(_log, logging.INFO, f"{sentence}, which is valid until {ends}", serial=serial)
        return True

    def _wait_seconds(self) -> float:
        if self._plan is None or not self._watcher.bundle.https:
            return POLL_SECONDS
        now, steady = self._now(), trio.current_time()
        return self._plan.wait_seconds(now, steady, attached=self._state.is_attached)

    async def _renew(self) -> None:
        error, reason = await _run(self._command())
        if self._reload(renewed=not error):
            return
        plan = self._plan
        assert plan is not None
        chance, is_revoked = random.random(), reason == Reason.REVOKED.word  # noqa: S311
        wait = plan.failed(trio.current_time(), chance, hopeless=is_revoked)
        ends = as_minute(plan.validity.ends)
        cause = error or "the file did not change"
        text = f"the certificate was not renewed, and is valid until {ends}: {cause}"
        self._state.trouble(text)
        log_event(_log, logging.WARNING, f"{text}; next try in {wait:.0f} s", reason=reason or None)


async def _run(command: Sequence[str]) -> tuple[str, str]:
    """Run ``command``; return its error and the word of a server's refusal, both empty after a success."""
    with trio.move_on_after(_RENEWAL_SECONDS):
        try:
            process = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        except OSError as error:
            return f"{command[0]} cannot be started: {error.strerror}", ""
        if process.returncode == 0:
            return "", ""
        return _explain(process.stdout, process.stderr, process.returncode)
    return f"the renewal took longer than {_RENEWAL_SECONDS:g} s", ""


def _explain(output: bytes, errors: bytes, code: int) -> tuple[str, str]:
    try:
        answer = json.loads(output)
        return str(answer["detail"])[:_MAX_ERROR_CHARACTERS], str(answer["reason"])
    except (ValueError, KeyError, TypeError):
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        return last[:_MAX_ERROR_CHARACTERS] or f"the renewal ended with exit code {code}", ""
