"""Uninstall a service: stop and disable it and remove its unit; ``purge`` removes everything it used."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

from tunnel_core.service.install import KEPT_SUFFIX, Report
from tunnel_core.service.machine import Machine, MachineError, Manager
from tunnel_core.service.plan import Remains, ServicePlan, as_shell, installed_unit
from tunnel_core.service.unit import command_in

_SERVICES = ("qanat-agent", "qanat-server")
_PROGRAMS = ("qanat", *_SERVICES)
_LINKS = Path("/usr/local/bin")
_RUNTIME = Path("/run")


def uninstall(plan: ServicePlan, machine: Machine, report: Report) -> None:
    """Stop the service and remove its unit only. Raises ``MachineError`` or ``OSError``."""
    file = machine.unit_folder / plan.spec.unit
    manager = machine.manager()
    if not file.exists():
        report(f"{file} is not there: nothing to remove")
        return
    if manager is Manager.RUNNING:
        machine.systemctl("disable", "--quiet", "--now", plan.spec.unit)
        report(f"stopped and disabled {plan.spec.unit}")
    elif manager is Manager.OFFLINE:
        machine.systemctl("disable", "--quiet", plan.spec.unit)
        report(f"disabled {plan.spec.unit}")
    file.unlink()
    file.with_name(file.name + KEPT_SUFFIX).unlink(missing_ok=True)
    report(f"removed {file}")
    if manager is Manager.RUNNING:
        machine.systemctl("daemon-reload")
        with contextlib.suppress(MachineError):  # systemd has forgotten a unit that never failed
            machine.systemctl("reset-failed", plan.spec.unit)
    if plan.spec.runtime_name:
        shutil.rmtree(_RUNTIME / plan.spec.runtime_name, ignore_errors=True)


def remains(plan: ServicePlan, machine: Machine) -> list[Remains]:
    """Return what is left of the service, in the order in which ``purge`` removes it."""
    drop_ins = Remains(machine.unit_folder / f"{plan.spec.unit}.d", "your own changes of the unit")
    return [rest for rest in (*plan.remains, drop_ins) if rest.path.exists() or rest.path.is_symlink()]


def purge(plan: ServicePlan, machine: Machine, report: Report) -> None:
    """Remove all that ``remains`` returns, and the system user. Raises ``MachineError`` or ``OSError``."""
    for rest in remains(plan, machine):
        if rest.path.is_dir() and not rest.path.is_symlink():
            shutil.rmtree(rest.path)
        else:
            rest.path.unlink()
        report(f"removed {rest.path}")
    with contextlib.suppress(OSError):  # the folder is absent, or has files of other programs
        plan.config.parent.rmdir()
        report(f"removed {plan.config.parent}")
    if machine.find_account(plan.spec.user) is not None:
        machine.remove_account(plan.spec.user)
        report(f"removed the system user {plan.spec.user}")


def removal_commands(plan: ServicePlan, machine: Machine) -> list[str]:
    """Return the commands that remove by hand what ``uninstall`` leaves."""
    left = remains(plan, machine)
    files = [as_shell("rm", "-r", *(rest.path for rest in left))] if left else []
    user = [as_shell("userdel", plan.spec.user)] if machine.find_account(plan.spec.user) else []
    return files + user


def program_removal(plan: ServicePlan, machine: Machine, links: Path = _LINKS) -> list[str]:
    """Return the command that removes this installation of the programs, for the operator to run.

    If the other service uses the installation, a comment says so, and only this program's link is removed.
    """
    prefix = Path(sys.prefix)
    used = [reason for name in _SERVICES if (reason := _use_of(name, plan, machine, prefix, links))]
    if used:
        own = links / plan.spec.program
        removal = [as_shell("rm", own)] if _leads_into(own, prefix) else []
        return [*removal, f"# {prefix} stays, because {'; '.join(used)}"]
    if sys.prefix == sys.base_prefix:
        return [as_shell(sys.executable, "-m", "pip", "uninstall", "qanat")]
    own_links = [links / name for name in _PROGRAMS]
    return [as_shell("rm", "-r", prefix, *(link for link in own_links if _leads_into(link, prefix)))]


def _use_of(program: str, plan: ServicePlan, machine: Machine, prefix: Path, links: Path) -> str:
    """Return how another service's program uses the installation at ``prefix``; empty if it does not."""
    if plan.spec.program == program:
        return ""
    command = command_in(installed_unit(machine, program) or "")
    if command and Path(command[0]).is_relative_to(prefix):
        return f"the service {program} runs from it"
    if _leads_into(links / program, prefix):
        return f"{links / program} leads to it"
    return ""


def _leads_into(link: Path, folder: Path) -> bool:
    return link.is_symlink() and link.parent.joinpath(link.readlink()).is_relative_to(folder)
