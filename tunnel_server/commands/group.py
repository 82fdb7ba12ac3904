"""``qanat-server group``: groups of users, which grants name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunnel_core.cli.command_line import CommandError, CommandGroup, ExitCode, print_json
from tunnel_core.cli.tables import Table, show_list, wide_option
from tunnel_core.humanize import counted, minute_of
from tunnel_core.identity import Role
from tunnel_server.auth.grants import is_group_name, why_no_group
from tunnel_server.commands.access import checked_name, config_option, json_option, perform
from tunnel_server.commands.confirming import confirm, first_items, yes_option
from tunnel_server.commands.names import complete_group, complete_user

_TABLE = Table(("group", "members"), ("created", "created by", "note"))

_group = click.argument("group", shell_complete=complete_group)
_users = click.argument("users", nargs=-1, required=True, metavar="USER...", shell_complete=complete_user)


@click.group("group", cls=CommandGroup)
def command() -> None:
    """Add, list and remove groups of users. Grants name groups as they name users.

    \b
    Examples:
      qanat-server group add field-service
      qanat-server group add-member field-service kim@example.com
      qanat-server group list
    """


@command.command("add")
@click.argument("group")
@click.option("--note", default="", metavar="TEXT", help="Text that lists show.")
@config_option
@json_option
def add(group: str, note: str, config: Path | None, as_json: bool) -> None:
    """Add GROUP, which has no members yet.

    \b
    Example:
      qanat-server group add field-service --note 'the people with the vans'
    """
    answer = perform(config, "POST", "groups/add", {"group": _checked(group), "note": note})
    step = f"qanat-server group add-member {group} USER"
    print_json(answer) if as_json else click.echo(f"Added group {group}.\n\nNext:\n  {step}")


@command.command("remove")
@_group
@yes_option
@config_option
@json_option
def remove(group: str, yes: bool, config: Path | None, as_json: bool) -> None:
    """Remove GROUP. Its members lose what grants give to the group; their connections by it end.

    Grants that name the group stay, and give it to members of a new group of that name. At a terminal the
    command asks first.

    \b
    Example:
      qanat-server group remove field-service
    """
    listed = perform(config, "GET", "groups", {})["groups"]
    members = [member for found in listed if found["name"] == group for member in found["members"]]
    who = f": {first_items(members)}" if members else ""
    what = f"Group {_checked(group)} has {counted(len(members), 'member')}{who}."
    confirm(what, f"Remove group {group}?", yes=yes, as_json=as_json)
    answer = perform(config, "POST", "groups/remove", {"group": group})
    print_json(answer) if as_json else click.echo(f"Removed group {group}.")


@command.command("list")
@wide_option
@config_option
@json_option
def list_groups(wide: bool, config: Path | None, as_json: bool) -> None:
    """List the groups with their members. Groups of a login provider are not stored here.

    \b
    Example:
      qanat-server group list
    """
    answer = perform(config, "GET", "groups", {})
    nothing = "There is no group. Add one: qanat-server group add NAME"
    show_list(answer, _TABLE, map(_row, answer["groups"]), nothing, as_json=as_json, wide=wide)


def _row(group: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(group["name"], ", ".join(group["members"])),
        *(minute_of(group["created"]), group["created_by"], group["note"]),
    )


@command.command("add-member")
@_group
@_users
@config_option
@json_option
def add_member(group: str, users: tuple[str, ...], config: Path | None, as_json: bool) -> None:
    """Add users to GROUP. Users of another issuer must be added first: `qanat-server user add`.

    \b
    Example:
      qanat-server group add-member field-service kim@example.com robin
    """
    answer = _change("groups/add-members", group, users, config)
    _print(answer, "Added", "to", as_json=as_json)


@command.command("remove-member")
@_group
@_users
@config_option
@json_option
def remove_member(group: str, users: tuple[str, ...], config: Path | None, as_json: bool) -> None:
    """Remove users from GROUP. Their connections that only a grant to the group allows end at once.

    \b
    Example:
      qanat-server group remove-member field-service kim@example.com
    """
    answer = _change("groups/remove-members", group, users, config)
    _print(answer, "Removed", "from", as_json=as_json)


def _change(path: str, group: str, users: tuple[str, ...], config: Path | None) -> dict[str, Any]:
    names = [checked_name(Role.USER, name) for name in users]
    return perform(config, "POST", path, {"group": _checked(group), "users": names})


def _print(answer: dict[str, Any], verb: str, preposition: str, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    changed = answer["changed"]
    done = f"{verb} {', '.join(changed)} {preposition} group {answer['group']}." if changed else "No change."
    click.echo(f"{done} It has {counted(len(answer['members']), 'member')}.")


def _checked(group: str) -> str:
    if not is_group_name(group):
        raise CommandError(ExitCode.USAGE, why_no_group(group))
    return group
