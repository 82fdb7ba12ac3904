"""State of a service in systemd, and the next step for the operator."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tunnel_core
from tunnel_core.humanize import as_iso
from tunnel_core.service.machine import Machine, MachineError, Manager
from tunnel_core.service.plan import ServicePlan, installed_unit
from tunnel_core.service.unit import unit_text

_PROPERTIES = (
    "ActiveState",
    "SubState",
    "MainPID",
    "NRestarts",
    "ExecMainCode",
    "ExecMainStatus",
    "ExecMainStartTimestampMonotonic",
    "StateChangeTimestampMonotonic",
    "DropInPaths",
)
_EXITED = 1  # CLD_EXITED of waitid(2); the other codes name a signal


@dataclass(frozen=True, slots=True)
class UnitState:
    """State of a unit. If systemd does not run, only the first three fields are known."""

    installed: bool
    enabled: bool
    differs: bool
    """Whether this version would write another unit."""
    active: str | None = None
    """``active``, ``activating``, ``deactivating``, ``inactive``, ``failed``, ...; None if unknown."""
    detail: str = ""
    since: datetime | None = None
    process: int = 0
    started: datetime | None = None
    restarts: int = 0
    last_exit: str = ""
    drop_ins: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return the state and the last exit in a few words."""
        state = f"{self.active} ({self.detail})" if self.detail else self.active or "unknown"
        return f"{state}, last exit: {self.last_exit}" if self.last_exit else state

    def as_json(self) -> dict[str, Any]:
        """Return the state as a JSON object."""
        return {
            "installed": self.installed,
            "enabled": self.enabled,
            "differs": self.differs,
            "active": self.active,
            "detail": self.detail,
            "since": as_iso(self.since) if self.since else None,
            "process": self.process or None,
            "restarts": self.restarts,
            "last_exit": self.last_exit or None,
            "drop_ins": list(self.drop_ins),
        }


def read_state(plan: ServicePlan, machine: Machine) -> UnitState:
    """Return the state of the plan's unit.

    Raises ``MachineError`` if systemd does not answer, and ``OSError`` if the unit cannot be read.
    """
    unit = installed_unit(machine, plan.spec.program)
    installed, differs = unit is not None, unit is not None and unit != unit_text(plan.spec)
    manager = machine.manager()
    enabled = installed and manager is not Manager.ABSENT and _is_enabled(plan, machine)
    if manager is not Manager.RUNNING:
        return UnitState(installed, enabled, differs)
    shown = machine.systemctl("show", f"--property={','.join(_PROPERTIES)}", plan.spec.unit)
    values = dict(line.partition("=")[::2] for line in shown.splitlines())
    return UnitState(
        installed,
        enabled,
        differs,
        active=values.get("ActiveState"),
        detail=values.get("SubState", ""),
        since=_moment(values.get("StateChangeTimestampMonotonic", "")),
        process=_number(values.get("MainPID", "")),
        started=_moment(values.get("ExecMainStartTimestampMonotonic", "")),
        restarts=_number(values.get("NRestarts", "")),
        last_exit=_last_exit(values),
        drop_ins=tuple(values.get("DropInPaths", "").split()),
    )


def _is_enabled(plan: ServicePlan, machine: Machine) -> bool:
    try:
        return machine.systemctl("is-enabled", plan.spec.unit).strip() == "enabled"
    except MachineError:  # systemctl exits with an error for a unit that is not enabled
        return False


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _moment(text: str) -> datetime | None:
    """Convert microseconds of the monotonic clock to wall time; None for 0 or no number."""
    microseconds = _number(text)
    if not microseconds:
        return None
    age_seconds = time.clock_gettime(time.CLOCK_MONOTONIC) - microseconds / 1e6
    return datetime.fromtimestamp(time.time() - age_seconds, UTC)


def _last_exit(values: dict[str, str]) -> str:
    """Return how the last process ended; empty if none has ended yet."""
    code, status = _number(values.get("ExecMainCode", "")), _number(values.get("ExecMainStatus", ""))
    if not code:
        return ""
    if code == _EXITED:
        return f"code {status}"
    try:
        return signal.Signals(status).name
    except ValueError:
        return f"signal {status}"


def restart_reason(plan: ServicePlan, state: UnitState) -> str:
    """Return why the running process is older than the program or its configuration; empty if it is not."""
    if state.active != "active" or state.started is None:
        return ""
    started = state.started.timestamp()
    # Use the inode's change time, because some installers keep the modification time of the build.
    if (Path(tunnel_core.__path__[0]) / "__init__.py").stat().st_ctime > started:
        return "the program was installed after it was started"
    try:
        changed = plan.config.stat().st_mtime
    except OSError:
        return ""
    return f"{plan.config} was changed after it was started" if changed > started else ""


def next_step(plan: ServicePlan, state: UnitState, manager: Manager) -> str:
    """Return the next step for the operator: one command, or one sentence if there is no command."""
    install = f"sudo {plan.spec.command[0]} service install"
    if plan.problem:
        return plan.problem
    if manager is Manager.ABSENT:
        return f"no systemd here: start `{plan.spec.program} run` by the machine's own init system"
    if not state.installed or not state.enabled or state.differs:
        return install
    if manager is Manager.OFFLINE:
        return "systemd does not run here; the service starts at the next boot"
    if restart_reason(plan, state):
        return f"sudo systemctl restart {plan.spec.program}"
    if state.active == "active":
        return plan.next_steps[0]
    if state.active in ("failed", "activating"):
        return f"journalctl -u {plan.spec.program} -n 20"
    return f"sudo systemctl start {plan.spec.program}"
