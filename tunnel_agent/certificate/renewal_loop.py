"""Keeps the certificate of a running agent fresh, and takes up what is put into its place.

The renewal itself is ``qanat-agent renew`` in a process of its own; this waits, starts it, and looks at the
file. Attaches go by the new bundle from then on, and the session moves to a carrier that shows it: the
server ends a session at the end of the certificate that its carrier has shown.
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
from tunnel_agent.certificate.renewal_schedule import LOOK_SECONDS, RenewalPlan, plan_after
from tunnel_agent.status.state import AgentState
from tunnel_core.humanize import as_minute
from tunnel_core.reasons import Reason
from tunnel_core.telemetry.logs import log_event

_log = logging.getLogger("qanat.renewal")

_RENEWAL_SECONDS = 180.0
_MAX_SAID = 500


class Renewal:
    """``command`` gives what to start. ``use_bundle`` hears of each new bundle."""

    def __init__(
        self,
        held: BundleWatcher,
        state: AgentState,
        command: Callable[[], Sequence[str]],
        use_bundle: Callable[[Bundle], None],
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._held = held
        self._state = state
        self._command = command
        self._use_bundle = use_bundle
        self._wall = wall
        self._plan = self._new_plan(renewed=False)

    def _new_plan(self, *, renewed: bool) -> RenewalPlan | None:
        life, chance = self._held.life, random.random()  # noqa: S311 - spreads load
        plan = plan_after(life, trio.current_time(), chance, renewed=renewed) if life else None
        self._state.certificate = life
        self._state.renews_at = plan.at if plan else None
        return plan

    async def run(self) -> None:
        """Renews until cancelled. Cancelled, it leaves no process behind, and the bundle old or new."""
        while True:
            self._look(renewed=False)
            wait = self._wait_seconds()
            if wait > 0:
                await trio.sleep(min(wait, LOOK_SECONDS))
            else:
                await self._renew()

    def _look(self, *, renewed: bool) -> bool:
        before = self._held.bundle.chain_pem
        if not self._held.reload_if_changed():
            return False
        self._use_bundle(self._held.bundle)
        if self._held.bundle.chain_pem == before:
            return False  # other roots, or addresses
        self._plan = self._new_plan(renewed=renewed)
        life = self._held.life
        ends = as_minute(life.ends) if life else "an unknown time"
        what = "renewed the certificate" if renewed else "took up another certificate"
        log_event(_log, logging.INFO, f"{what}: it holds until {ends}", serial=life.serial if life else None)
        return True

    def _wait_seconds(self) -> float:
        if self._plan is None or not self._held.bundle.https:
            return LOOK_SECONDS
        now, steady = self._wall(), trio.current_time()
        return self._plan.wait_seconds(now, steady, attached=self._state.is_attached)

    async def _renew(self) -> None:
        said, reason = await _run(self._command())
        if self._look(renewed=not said):
            return
        plan = self._plan
        assert plan is not None
        chance, is_revoked = random.random(), reason == Reason.REVOKED.word  # noqa: S311
        wait = plan.failed(trio.current_time(), chance, hopeless=is_revoked)
        ends = as_minute(plan.life.ends)
        text = f"the certificate was not renewed, and holds until {ends}: {said or 'nothing has changed'}"
        self._state.trouble(text)
        log_event(_log, logging.WARNING, f"{text}; again in {wait:.0f} s", reason=reason or None)


async def _run(command: Sequence[str]) -> tuple[str, str]:
    """What went wrong, and the reason's word if a server had one; both empty if nothing did."""
    with trio.move_on_after(_RENEWAL_SECONDS):
        try:
            ran = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        except OSError as error:
            return f"{command[0]} cannot be started: {error.strerror}", ""
        return ("", "") if ran.returncode == 0 else _explain(ran.stdout, ran.stderr, ran.returncode)
    return f"it took longer than {_RENEWAL_SECONDS:g} s", ""


def _explain(output: bytes, errors: bytes, code: int) -> tuple[str, str]:
    try:
        answer = json.loads(output)
        return str(answer["detail"])[:_MAX_SAID], str(answer["reason"])
    except (ValueError, KeyError, TypeError):
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        return last[:_MAX_SAID] or f"it ended with {code}", ""
