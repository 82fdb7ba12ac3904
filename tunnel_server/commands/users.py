"""``qanat-server user``: add, list, disable, enable and passwd. ``revoke.py`` has revoke and unrevoke."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from tunnel_core.cli.command_line import CommandError, ExitCode, print_json
from tunnel_core.cli.tables import Table, show_list, wide_option
from tunnel_core.humanize import minute_of
from tunnel_core.identity import Role
from tunnel_server.auth.passwords import (
    MAX_PASSWORD_BYTES,
    PasswordsUnavailable,
    hash_password,
    why_no_password,
)
from tunnel_server.commands.access import checked_name, config_option, json_option, perform
from tunnel_server.commands.confirming import confirm, yes_option
from tunnel_server.commands.grant_hint import grant_hint
from tunnel_server.commands.names import complete_user
from tunnel_server.commands.revoke import user

_TABLE = Table(("user", "kind", "state", "groups", "known by"), ("created", "created by", "note"))

__all__ = ["user"]

note_option = click.option("--note", default="", metavar="TEXT", help="Text that lists show.")
_name = click.argument("name", shell_complete=complete_user)


@user.command("add")
@click.argument("name")
@click.option("--script", is_flag=True, help="A program: certificates and API tokens only, no login.")
@note_option
@config_option
@json_option
def add(name: str, script: bool, note: str, config: Path | None, as_json: bool) -> None:
    """Add user NAME, who may do nothing until a grant says so.

    A user to whom `qanat-server issue user` gives a certificate is added by that command.

    \b
    Examples:
      qanat-server user add kim@example.com
      qanat-server user add nightly-backup --script --note 'cron on build-3'
    """
    wanted = {"name": checked_name(Role.USER, name), "note": note, "script": script}
    made = perform(config, "POST", "users/add", wanted)
    steps = [*grant_hint(name, made["grants"], config), f"qanat-server issue user {name}"]
    if as_json:
        print_json({**made, "next": steps})
        return
    may = "" if made["grants"] else f" {name} may open nothing yet."
    click.echo(
        "\n".join([f"Added {made['kind']} {name}.{may}", "", "Next:", *(f"  {step}" for step in steps)])
    )


@user.command("list")
@wide_option
@config_option
@json_option
def list_users(wide: bool, config: Path | None, as_json: bool) -> None:
    """List the users that were added or got a certificate here, with their groups. Times are in UTC.

    Revocations are not shown: `qanat-server cert list` shows them for each certificate.

    \b
    Example:
      qanat-server user list
    """
    answer = perform(config, "GET", "users", {})
    nothing = "There is no user. Add one: qanat-server issue user NAME"
    show_list(answer, _TABLE, map(_row, answer["users"]), nothing, as_json=as_json, wide=wide)


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    state = f"disabled since {minute_of(found['disabled'])}" if found["disabled"] else "enabled"
    known_by = [
        *(["certificate"] if found["certificates"] else []),
        *(["password"] if found["password_set"] else []),
        *(["API token"] if found["api_tokens"] else []),
    ]
    return (
        *(found["name"], found["kind"], state, ", ".join(found["groups"]), ", ".join(known_by)),
        *(minute_of(found["created"]), found["created_by"], found["note"]),
    )


@user.command("disable")
@_name
@yes_option
@config_option
@json_option
def disable(name: str, yes: bool, config: Path | None, as_json: bool) -> None:
    """Disable user NAME at once, whatever the user is known by: certificate, password, API token.

    Grants, groups and credentials stay, so `user enable` restores everything. At a terminal it asks first.
    To shut out a stolen certificate, and not its user, use `qanat-server cert revoke`.

    \b
    Examples:
      qanat-server user disable kim@example.com
      qanat-server user disable kim@example.com --yes
    """
    what = f"User {checked_name(Role.USER, name)} may do nothing any more; open connections of the user end."
    confirm(what, f"Disable {name}?", yes=yes, as_json=as_json)
    answer = perform(config, "POST", "users/disable", {"name": name})
    if as_json:
        print_json(answer)
        return
    done = "is disabled already" if answer["again"] else "is disabled"
    click.echo(f"User {name} {done}. To undo this: qanat-server user enable {name}")


@user.command("enable")
@_name
@config_option
@json_option
def enable(name: str, config: Path | None, as_json: bool) -> None:
    """Enable user NAME again, with the grants, groups and credentials of before.

    \b
    Example:
      qanat-server user enable kim@example.com
    """
    answer = perform(config, "POST", "users/enable", {"name": checked_name(Role.USER, name)})
    done = "was not disabled" if answer["again"] else "is enabled again"
    print_json(answer) if as_json else click.echo(f"User {name} {done}.")


@user.command("passwd")
@_name
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Read the password from the first line of FILE; - is standard input. [default: a prompt]",
)
@click.option("--remove", is_flag=True, help="Remove the password: the user cannot log in with one.")
@config_option
@json_option
def passwd(name: str, password_file: Path | None, remove: bool, config: Path | None, as_json: bool) -> None:
    """Store a password for user NAME, from a prompt or a file. No entrance asks for it yet.

    The server stores its argon2id hash, which this command makes: the password goes nowhere else.

    \b
    Examples:
      qanat-server user passwd kim@example.com
      qanat-server user passwd kim@example.com --password-file secret.txt
      qanat-server user passwd kim@example.com --remove
    """
    checked_name(Role.USER, name)
    if remove and password_file is not None:
        raise CommandError(ExitCode.USAGE, "give either --remove or --password-file")
    wanted: dict[str, Any] = {"name": name, "remove": True}
    if not remove:
        wanted = {"name": name, "hash": _hashed(_password(password_file))}
    answer = perform(config, "POST", "users/password", wanted)
    done = "Removed the password" if remove else "Set the password"
    print_json(answer) if as_json else click.echo(f"{done} of user {name}.")


def _hashed(password: str) -> str:
    if why := why_no_password(password):
        raise CommandError(ExitCode.USAGE, f"{why}; nothing was changed")
    try:
        return hash_password(password)
    except PasswordsUnavailable as error:
        raise CommandError(ExitCode.FAILED, f"{error}; nothing was changed") from None


def _password(file: Path | None) -> str:
    """Return the password from the file, from standard input or from a prompt. Raises ``CommandError``."""
    if file is None:
        if not sys.stdin.isatty():
            fix = "name a file: --password-file FILE, or - for standard input"
            raise CommandError(ExitCode.USAGE, f"there is no terminal for a prompt; {fix}")
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.readline(MAX_PASSWORD_BYTES + 2)
        else:
            with file.open("rb") as opened:
                data = opened.readline(MAX_PASSWORD_BYTES + 2)
    except OSError as error:
        raise CommandError(ExitCode.FAILED, f"{file} cannot be read: {error.strerror}") from None
    try:
        return data.rstrip(b"\r\n").decode()
    except UnicodeDecodeError:
        raise CommandError(ExitCode.USAGE, f"{file} is not text in UTF-8; nothing was changed") from None
