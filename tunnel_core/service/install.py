"""Install a service: account, file owners, unit, start. Each change is reported."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tunnel_core.cli.installing import write_public_text
from tunnel_core.runtime import health_probe as health
from tunnel_core.service.handover import hand_over_file, hand_over_tree, let_read
from tunnel_core.service.machine import Account, Machine, MachineError, Manager
from tunnel_core.service.plan import ServicePlan, as_shell, installed_unit, own_places
from tunnel_core.service.status import read_state, restart_reason
from tunnel_core.service.unit import unit_text

Report = Callable[[str], None]
"""Called with one sentence for each change."""

KEPT_SUFFIX = ".before"
_START_SECONDS = 30.0
_CHECK_SECONDS = 0.2
_READS = "import sys; open(sys.argv[1], 'rb').close()"
_WRITES = "import os, sys; sys.exit(not os.access(sys.argv[1], os.W_OK | os.X_OK) and 'not writable')"


def install(plan: ServicePlan, machine: Machine, report: Report, *, start: bool) -> None:
    """Install the service, or repair what differs; restart a running service only if something changed.

    Raises ``MachineError``. The changes until then stay, and a second run continues from there.
    """
    _check_places(plan, machine)
    _check_free(plan, machine)
    account = _account(plan, machine, report)
    _prepare_files(plan, machine, account, report)
    changed = _write_unit(plan, machine, report)
    running = machine.manager() is Manager.RUNNING
    if changed and running:
        machine.systemctl("daemon-reload")
    if not read_state(plan, machine).enabled:
        machine.systemctl("enable", "--quiet", plan.spec.unit)
        report(f"enabled {plan.spec.unit}: it starts at each boot")
    if start and running:
        _start(plan, machine, report, changed)


def _check_places(plan: ServicePlan, machine: Machine) -> None:
    """Raise ``MachineError`` for a file in a folder that ProtectHome or PrivateTmp hides from the service."""
    for place in own_places():
        if machine.is_hidden(place):
            raise MachineError(
                f"this program is in {place}, which a service cannot see; install it into /opt/qanat "
                f"(python3 -m venv /opt/qanat) and run /opt/qanat/bin/{plan.spec.program} service install"
            )
    for path in filter(None, (plan.config, plan.data_folder, *plan.reads)):
        if machine.is_hidden(path.resolve()):
            raise MachineError(
                f"{path} is where a service cannot see it; move it, for example to /etc/qanat or /var/lib, "
                f"name its new place in {plan.config}, and run this again"
            )


def _check_free(plan: ServicePlan, machine: Machine) -> None:
    """Raise ``MachineError`` if another program answers, such as one that was started by hand."""
    is_running = read_state(plan, machine).active in ("active", "activating", "reloading")
    if not is_running and not _unhealthy(plan):
        raise MachineError(_port_taken(plan))


def _port_taken(plan: ServicePlan) -> str:
    return (
        f"another program answers at {plan.ops_endpoint.listen}, [ops] listen: end it "
        f"(a `{plan.spec.program} run` that was started by hand?), or write another port into {plan.config}; "
        "then run this again"
    )


def _account(plan: ServicePlan, machine: Machine, report: Report) -> Account:
    account = machine.find_account(plan.spec.user)
    if account is None:
        home = plan.data_folder or Path("/nonexistent")
        account = machine.create_account(plan.spec.user, home)
        report(f"created the system user {account.name}")
    if missing := [group for group in plan.spec.groups if not machine.has_group(group)]:
        raise MachineError(f"there is no group {missing[0]} here; make it with groupadd, or name another")
    return account


def _prepare_files(plan: ServicePlan, machine: Machine, account: Account, report: Report) -> None:
    if plan.data_folder is not None:
        _prepare_data(plan.data_folder, account, report)
    cause = machine.run_as(account, [*plan.spec.command[: _length_of_program(plan)], "--version"])
    if cause:
        raise MachineError(f"user {account.name} cannot start {plan.spec.command[0]}: {cause}")
    _prepare_config(plan.config, machine, account, report)
    for file in plan.reads:
        _prepare_read(file, plan, machine, account, report)
    for folder in plan.spec.write_folders:
        if machine.run_as(account, [sys.executable, "-I", "-c", _WRITES, folder]):
            fix = as_shell("install", "-d", "-o", account.name, "-m", "0700", folder)
            raise MachineError(f"user {account.name} cannot write in {folder}; run: {fix}")


def _length_of_program(plan: ServicePlan) -> int:
    """Return how many words of the command line name the program, before its subcommand."""
    return plan.spec.command.index("run")


def _prepare_data(folder: Path, account: Account, report: Report) -> None:
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True)
    if changed := hand_over_tree(folder, account):
        entries = "entry" if changed == 1 else "entries"
        report(f"gave {folder} to {account.name} ({changed} {entries})")


def _prepare_config(config: Path, machine: Machine, account: Account, report: Report) -> None:
    """Let the service read its configuration, which stays root's so that the program cannot change it."""
    if not config.exists() or not _cannot_read(config, machine, account):
        return
    folder = config.parent
    mode = folder.stat().st_mode
    if folder.stat().st_uid == 0 and not mode & 0o001:
        folder.chmod(mode & 0o777 | 0o001)
        report(f"let others pass through {folder} (not list it)")
    if _cannot_read(config, machine, account):
        let_read(config, account)
        report(f"let group {account.name} read {config}")
    if cause := _cannot_read(config, machine, account):
        raise MachineError(f"user {account.name} cannot read {config}: {cause}")


def _prepare_read(file: Path, plan: ServicePlan, machine: Machine, account: Account, report: Report) -> None:
    """Make the service the owner of a file that it cannot read, if the file is beside its configuration.

    Raises ``MachineError`` if the service cannot read the file then.
    """
    cause = _cannot_read(file, machine, account)
    if not cause:
        return
    if file.exists() and file.parent == plan.config.parent and hand_over_file(file, account):
        report(f"gave {file} to {account.name}")
        cause = _cannot_read(file, machine, account)
    if cause:
        raise MachineError(f"user {account.name} cannot read {file}, named in {plan.config}: {cause}")


def _cannot_read(file: Path, machine: Machine, account: Account) -> str:
    return machine.run_as(account, [sys.executable, "-I", "-c", _READS, str(file)])


def _write_unit(plan: ServicePlan, machine: Machine, report: Report) -> bool:
    """Write the unit, keep the old one beside it, and return whether it changed."""
    file, text = machine.unit_folder / plan.spec.unit, unit_text(plan.spec)
    before = installed_unit(machine, plan.spec.program)
    if before == text:
        return False
    if before is not None:
        kept = file.with_name(file.name + KEPT_SUFFIX)
        write_public_text(kept, before)
        report(f"kept the former unit as {kept}")
    write_public_text(file, text)
    report(f"wrote {file}")
    return True


def _start(plan: ServicePlan, machine: Machine, report: Report, changed: bool) -> None:
    state = read_state(plan, machine)
    is_active = state.active == "active"
    reason = "its unit changed" if changed else restart_reason(plan, state)
    if is_active and not reason:
        report(f"{plan.spec.unit} runs already, with all of this")
        return
    machine.systemctl("stop", plan.spec.unit)  # also if systemd waits to restart it
    is_port_taken = not _unhealthy(plan)
    machine.systemctl("start", plan.spec.unit)
    report(f"restarted {plan.spec.unit}, because {reason}" if is_active else f"started {plan.spec.unit}")
    if is_port_taken:
        raise MachineError(_port_taken(plan))
    _wait_healthy(plan, machine)


def _wait_healthy(plan: ServicePlan, machine: Machine) -> None:
    """Wait until the program answers. Raises ``MachineError`` with the end of the log if it does not."""
    cause = ""
    for _ in _checks():
        state = read_state(plan, machine)
        cause = _missing_answer(plan) if state.active == "active" else state.summary()
        if not cause:
            return
        if state.restarts:  # the program has exited already, and its log has the reason
            break
    log = machine.log_tail(plan.spec.unit)
    raise MachineError(
        f"{plan.spec.unit} does not come up: {cause}\n{log}".rstrip()
        + f"\nsystemd tries again every 2 s; the whole log: journalctl -u {plan.spec.program}"
    )


def _checks() -> Iterator[None]:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        yield
        time.sleep(_CHECK_SECONDS)


def _missing_answer(plan: ServicePlan) -> str:
    """Return why the program is not up; empty if it is, or if [ops] is off and it cannot be asked."""
    return _unhealthy(plan, plan.up_path) if plan.ops_endpoint.listen else ""


def _unhealthy(plan: ServicePlan, path: str = "/healthz") -> str:
    """Return why no program answers a probe with 200; empty if one does."""
    try:
        health.ask(plan.ops_endpoint, path)
    except health.Unhealthy as error:
        return str(error)
    return ""
