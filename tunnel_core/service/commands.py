"""The subcommands ``service install | status | uninstall`` of one program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from tunnel_core.cli.command_line import CommandError, CommandGroup, ExitCode, print_json
from tunnel_core.config.loader import ConfigError
from tunnel_core.humanize import as_moment
from tunnel_core.service.install import install
from tunnel_core.service.machine import LinuxMachine, Machine, MachineError, Manager
from tunnel_core.service.plan import ServicePlan, ServiceProgram, as_shell, own_command, plan_for
from tunnel_core.service.status import UnitState, next_step, read_state, restart_reason
from tunnel_core.service.uninstall import program_removal, purge, remains, removal_commands, uninstall
from tunnel_core.service.unit import unit_text

_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration of the service. [default: that of the installed unit, else the usual file]",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


_GROUP_HEAD = """Run PROGRAM as a systemd service: from boot on, as a user of its own, in a sandbox.

    \b
    Examples:
      PROGRAM service install
      PROGRAM service status
      PROGRAM service uninstall
    """


def service_group(program: ServiceProgram, machine: Machine | None = None) -> click.Group:
    """Return the group ``service`` of one program, for ``machine`` (default: this machine)."""
    host = machine or LinuxMachine()
    return CommandGroup(
        "service",
        commands=[_install(program, host), _status(program, host), _uninstall(program, host)],
        help=_GROUP_HEAD.replace("PROGRAM", program.name),
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _install(program: ServiceProgram, machine: Machine) -> click.Command:
    @click.command("install", help=_INSTALL_HELP.replace("PROGRAM", program.name))
    @_config_option
    @click.option("--group", "groups", multiple=True, metavar="GROUP", help=_GROUP_HELP)
    @click.option("--no-start", is_flag=True, help="Write and enable the unit; start nothing.")
    @click.option("--print", "only_print", is_flag=True, help="Print the unit and change nothing.")
    @_json_option
    def command(
        config: Path | None, groups: tuple[str, ...], no_start: bool, only_print: bool, as_json: bool
    ) -> None:
        with _failures():
            plan = plan_for(program, machine, config, tuple(dict.fromkeys(groups)) or None)
            if only_print:
                _print_unit(plan, as_json)
                return
            _refuse_install(plan, machine)
            done: list[str] = []
            install(plan, machine, _reporter(done, as_json), start=not no_start)
            state = read_state(plan, machine)
        _show_installed(plan, machine, state, done, as_json)

    return command


_INSTALL_HELP = """Write the unit, enable it and start it. As root; a second run repairs what differs.

    The command creates the service's system user, makes this user the owner of the service's files, and
    prints each change. It restarts a running service if the unit, the configuration or the program has
    changed. Run it after each upgrade.

    \b
    Examples:
      PROGRAM service install
      PROGRAM service install --no-start
      PROGRAM service install --print
    """
_GROUP_HELP = "A further group of the service's user, for unix sockets. May be repeated; kept by later runs."


def _print_unit(plan: ServicePlan, as_json: bool) -> None:
    text = unit_text(plan.spec)
    print_json({"unit": plan.spec.unit, "text": text}) if as_json else click.echo(text, nl=False)


def _refuse_install(plan: ServicePlan, machine: Machine) -> None:
    """Raise ``CommandError`` if the service cannot be installed, before anything is changed."""
    if machine.manager() is Manager.ABSENT:
        raise CommandError(ExitCode.FAILED, _without_systemd(plan))
    _need_root(machine, plan.spec.program, "install")
    if plan.problem:
        raise CommandError(ExitCode.USAGE, plan.problem)


def _without_systemd(plan: ServicePlan) -> str:
    user, folder = plan.spec.user, plan.data_folder
    prepare = [as_shell("useradd", "--system", "--shell", "/usr/sbin/nologin", user)]
    if folder is not None:
        prepare.append(as_shell("chown", "-R", f"{user}:{user}", folder))
    return "\n".join(
        [
            "this machine has no systemd (no systemctl is found), so nothing was changed. As root run",
            *(f"  {line}" for line in prepare),
            f"and let the machine's own init system start this as user {user} at boot and after each exit,",
            "with a limit of 65536 open files, and stop it with SIGTERM:",
            f"  {as_shell(*plan.spec.command)}",
            "For containers there are images: docker/README.md in the source.",
        ]
    )


def _need_root(machine: Machine, program: str, verb: str) -> None:
    if not machine.is_root():
        [first, *rest] = own_command(program)
        line = as_shell("sudo", first, *rest, "service", verb)
        raise CommandError(ExitCode.FAILED, f"a system service needs root; run: {line}")


def _show_installed(
    plan: ServicePlan, machine: Machine, state: UnitState, done: list[str], as_json: bool
) -> None:
    problem = "" if state.active == "active" else _why_not_running(machine, plan)
    steps = list(plan.next_steps) if state.active == "active" else []
    if as_json:
        print_json(
            {
                "unit": plan.spec.unit,
                "done": done,
                **state.as_json(),
                "notes": list(plan.notes),
                "next": steps,
            }
        )
        return
    for note in plan.notes:
        click.echo(f"note: {note}")
    click.echo(f"\n{problem or f'{plan.spec.unit} runs, and starts again at each boot.'}")
    if steps:
        click.echo("\nNext:\n" + "\n".join(f"  {step}" for step in steps))


def _why_not_running(machine: Machine, plan: ServicePlan) -> str:
    if machine.manager() is Manager.RUNNING:
        return f"Start it with: systemctl start {plan.spec.program}"
    return (
        "systemd does not run here (a chroot, or an image build): the service starts at the next boot.\n"
        f"If systemd never runs on this machine, let its own init system start this as user"
        f" {plan.spec.user}:\n  {as_shell(*plan.spec.command)}"
    )


def _status(program: ServiceProgram, machine: Machine) -> click.Command:
    @click.command("status", help=_STATUS_HELP.replace("PROGRAM", program.name))
    @_config_option
    @_json_option
    def command(config: Path | None, as_json: bool) -> None:
        with _failures():
            plan = plan_for(program, machine, config)
            state = read_state(plan, machine)
            step = next_step(plan, state, machine.manager())
            restart = restart_reason(plan, state)
        if as_json:
            shown = state.as_json() | {"unit": plan.spec.unit, "config": str(plan.config)}
            print_json({**shown, "restart": restart or None, "next": step})
        else:
            click.echo("\n".join(_status_lines(plan, machine, state, restart, step)))
        click.get_current_context().exit(ExitCode.OK if state.active == "active" else ExitCode.FAILED)

    return command


_STATUS_HELP = """Show whether the service is installed, enabled and running, and the next step.

    Exits with 0 if the service runs, else with 1. `restart` names what changed since a running service
    started.

    \b
    Examples:
      PROGRAM service status
      PROGRAM service status --json | jq .active
    """


def _status_lines(
    plan: ServicePlan, machine: Machine, state: UnitState, restart: str, step: str
) -> Iterator[str]:
    file = machine.unit_folder / plan.spec.unit
    yield f"installed  {file if state.installed else 'no'}"
    if state.installed:
        same = "differs from what this version would write" if state.differs else "as this version writes it"
        yield f"unit       {same}"
        yield f"enabled    {'yes, it starts at each boot' if state.enabled else 'no'}"
        yield f"config     {plan.config}"
    if state.active is not None and state.installed:
        since = f" since {as_moment(state.since)}" if state.since else ""
        yield f"state      {state.active} ({state.detail}){since}"
    if state.last_exit:
        yield f"last exit  {state.last_exit}"
    if state.restarts:
        yield f"restarts   {state.restarts}"
    for file_name in state.drop_ins:
        yield f"drop-in    {file_name}"
    if restart:
        yield f"restart    needed: {restart}"
    yield f"next       {step}"


def _uninstall(program: ServiceProgram, machine: Machine) -> click.Command:
    @click.command("uninstall", help=_UNINSTALL_HELP.replace("PROGRAM", program.name))
    @_config_option
    @click.option(
        "--purge", "wants_purge", is_flag=True, help="Remove configuration, keys, data and user too."
    )
    @click.option("--yes", is_flag=True, help="Do not ask before --purge removes anything.")
    @_json_option
    def command(config: Path | None, wants_purge: bool, yes: bool, as_json: bool) -> None:
        done: list[str] = []
        report = _reporter(done, as_json)
        with _failures():
            _need_root(machine, program.name, "uninstall")
            plan = plan_for(program, machine, config)
            if wants_purge and not yes:
                _confirm(plan, machine, as_json)
            uninstall(plan, machine, report)
            if wants_purge:
                purge(plan, machine, report)
            left = [str(rest.path) for rest in remains(plan, machine)]
            steps = [*plan.steps_elsewhere, *removal_commands(plan, machine), *program_removal(plan, machine)]
        if as_json:
            print_json({"unit": plan.spec.unit, "done": done, "left": left, "next": steps})
        else:
            click.echo("\n".join(_left_lines(plan, machine, steps)))

    return command


_UNINSTALL_HELP = """Stop and disable the service and remove its unit. Keys and data stay.

    The command prints what is left and how to remove it. --purge removes that too, after a question.

    \b
    Examples:
      PROGRAM service uninstall
      PROGRAM service uninstall --purge --yes
    """


def _confirm(plan: ServicePlan, machine: Machine, as_json: bool) -> None:
    """Raise ``CommandError`` unless the user confirms the removal."""
    if as_json or not sys.stdin.isatty():
        raise CommandError(
            ExitCode.USAGE, "--purge asks first, and there is no terminal to ask at; add --yes"
        )
    click.echo("This removes for good:")
    click.echo("\n".join(_remains_lines(plan, machine)))
    if not click.confirm("Remove it all?"):
        raise CommandError(ExitCode.FAILED, "nothing was changed")


def _remains_lines(plan: ServicePlan, machine: Machine) -> Iterator[str]:
    for rest in remains(plan, machine):
        yield f"  {rest.path}  {rest.meaning}"
    if machine.find_account(plan.spec.user):
        yield f"  user {plan.spec.user}"


def _left_lines(plan: ServicePlan, machine: Machine, steps: list[str]) -> Iterator[str]:
    left = list(_remains_lines(plan, machine))
    yield "\nLeft:" if left else "\nNothing of the service is left."
    yield from left
    yield "\nNext, to remove what is left:"
    yield from (f"  {step}" for step in steps)


def _reporter(done: list[str], as_json: bool) -> Callable[[str], None]:
    """Return a function that records each change and prints it at once, because a later step may fail."""

    def report(sentence: str) -> None:
        done.append(sentence)
        if not as_json:
            click.echo(sentence)

    return report


@contextmanager
def _failures() -> Iterator[None]:
    """Raise ``CommandError`` with a sentence for each expected error of the block."""
    try:
        yield
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    except MachineError as error:
        raise CommandError(ExitCode.FAILED, str(error)) from None
    except OSError as error:
        message = f"{error.filename or 'this machine'}: {error.strerror or error}"
        raise CommandError(ExitCode.FAILED, message) from None
