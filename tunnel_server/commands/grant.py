"""``qanat-server grant``: who may do what on which nodes and targets."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from tunnel_core.cli.command_line import CommandError, CommandGroup, ExitCode, print_json
from tunnel_core.cli.tables import Table, show_list, wide_option
from tunnel_core.humanize import counted, minute_of
from tunnel_core.identity import Role
from tunnel_server.auth.grant_patterns import GrantError
from tunnel_server.auth.grants import Grant, format_grants, parse_grants
from tunnel_server.commands.access import checked_name, config_option, json_option, perform
from tunnel_server.commands.confirming import confirm, yes_option
from tunnel_server.commands.names import complete_grant, complete_group, complete_node, complete_user

Json = dict[str, Any]
_TABLE = Table(("grant", "who", "may", "on nodes", "to targets"), ("note", "created", "by"))
_KEYS = ("id", "users", "groups", "verbs", "nodes", "targets", "note")
_MAX_FILE_BYTES = 2 * 1024 * 1024
"""Bytes of a file for `grant apply`."""


@click.group("grant", cls=CommandGroup)
def command() -> None:
    """Say which users and groups may do what on which nodes. What no grant allows is refused.

    \b
    Examples:
      qanat-server grant add --user kim --verb connect,http,api --node '*' --target '*'
      qanat-server grant list
      qanat-server grant apply grants.toml
    """


@command.command("add")
@click.option("--id", "grant_id", default="", metavar="ID", help="[default: made of the first name]")
@click.option(
    "--user", "users", multiple=True, metavar="NAME", shell_complete=complete_user, help="Who; * is everyone."
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_group,
    help="A group of users.",
)
@click.option(
    "--verb",
    "verbs",
    multiple=True,
    metavar="VERB[,VERB...]",
    help="connect: raw streams. http: services through the web entrance. api: reading nodes. "
    "admin: policy questions about other users. * is all.",
)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NODE",
    shell_complete=complete_node,
    help="A name, a name with *, or labels: shop-7, shop-*, site=hamburg,tier=1. * is every node.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="TARGET",
    help="A service, a port of the node, host:port, unix:/path. * is every target.",
)
@click.option("--note", default="", metavar="TEXT", help="Text that lists show.")
@config_option
@json_option
def add(
    grant_id: str,
    users: tuple[str, ...],
    groups: tuple[str, ...],
    verbs: tuple[str, ...],
    nodes: tuple[str, ...],
    targets: tuple[str, ...],
    note: str,
    config: Path | None,
    as_json: bool,
) -> None:
    """Add a grant, which acts at once. Each option but --id and --note may be repeated.

    The agent's own allow-list decides after the grants: both must allow a target.

    \b
    Examples:
      qanat-server grant add --user kim --verb connect,http,api --node '*' --target '*'
      qanat-server grant add --group field-service --verb http --node 'shop-*' --target flows
      qanat-server grant add --user robin --verb connect --node site=hamburg --target 22
    """
    lists = {"users": users, "groups": groups, "nodes": nodes, "targets": targets}
    table: Json = {key: list(texts) for key, texts in lists.items() if texts}
    table["verbs"] = list(itertools.chain.from_iterable(verb.split(",") for verb in verbs))
    table |= {key: text for key, text in (("id", grant_id), ("note", note)) if text}
    _parsed({"id": "new", **table})  # a mistake is named without a server
    answer = perform(config, "POST", "grants/add", {"grant": table})
    if as_json:
        print_json(answer)
        return
    name = answer["grant"]["id"]
    lines = [f"Grant {name}{' exists already' if answer['again'] else ''}: {answer['text']}."]
    lines += [f"Note: {sentence}." for sentence in answer["unknown"]]
    click.echo("\n".join([*lines, "", "To undo this:", f"  qanat-server grant remove {name}"]))


def _parsed(table: Json) -> Grant:
    try:
        return Grant.parse(table)
    except GrantError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None


@command.command("list")
@click.option(
    "--user",
    default="",
    metavar="NAME",
    shell_complete=complete_user,
    help="Grants of this user, also those through groups.",
)
@click.option("--toml", is_flag=True, help="Print the file that `grant apply` reads.")
@wide_option
@config_option
@json_option
def list_grants(user: str, toml: bool, wide: bool, config: Path | None, as_json: bool) -> None:
    """List the grants, the oldest first.

    \b
    Examples:
      qanat-server grant list
      qanat-server grant list --user kim
      qanat-server grant list --toml > grants.toml
    """
    if toml and as_json:
        raise CommandError(ExitCode.USAGE, "give either --toml or --json")
    answer = perform(config, "GET", "grants", {})
    if user:
        name = checked_name(Role.USER, user)
        ids = set(perform(config, "GET", "users/access", {"name": name})["grants"])
        answer = {"grants": [grant for grant in answer["grants"] if grant["id"] in ids]}
    if toml:
        click.echo(format_grants(map(_of_json, answer["grants"])), nl=False)
        return
    nothing = (
        f"User {user} has no grant, and may open nothing."
        if user
        else "There is no grant: nobody may do anything."
    )
    show_list(answer, _TABLE, map(_row, answer["grants"]), nothing, as_json=as_json, wide=wide)


def _of_json(grant: Json) -> Grant:
    return _parsed({key: grant[key] for key in _KEYS if grant[key]})


def _row(grant: Json) -> tuple[str, ...]:
    who = ", ".join([*grant["users"], *(f"group {group}" for group in grant["groups"])])
    return (
        *(
            grant["id"],
            who,
            ", ".join(grant["verbs"]),
            ", ".join(grant["nodes"]),
            ", ".join(grant["targets"]),
        ),
        *(grant["note"], minute_of(grant["created"]), grant["changed_by"] or grant["created_by"]),
    )


@command.command("remove")
@click.argument("ids", nargs=-1, required=True, metavar="GRANT...", shell_complete=complete_grant)
@yes_option
@config_option
@json_option
def remove(ids: tuple[str, ...], yes: bool, config: Path | None, as_json: bool) -> None:
    """Remove grants by id. Connections that no other grant allows end at once.

    The command shows them and asks first.

    \b
    Examples:
      qanat-server grant remove kim-1
      qanat-server grant remove kim-1 kim-2 --yes
    """
    found = perform(config, "POST", "grants/remove/preview", {"ids": list(ids)})["removes"]
    confirm(
        "\n".join(_lines("-", found)), f"Remove {counted(len(found), 'grant')}?", yes=yes, as_json=as_json
    )
    answer = perform(config, "POST", "grants/remove", {"ids": list(ids)})
    print_json(answer) if as_json else click.echo(f"Removed {counted(len(answer['removed']), 'grant')}.")


@command.command("apply")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--prune", is_flag=True, help="Remove every grant that FILE does not have.")
@click.option("--dry-run", is_flag=True, help="Show the difference, and change nothing.")
@yes_option
@config_option
@json_option
def apply(file: Path, prune: bool, dry_run: bool, yes: bool, config: Path | None, as_json: bool) -> None:
    """Make the grants of FILE (TOML; - is standard input) the grants of this server.

    Grants are compared by id. The command shows the difference and asks first; a second run changes nothing.
    `grant list --toml` prints a file to begin with.

    \b
    Examples:
      qanat-server grant apply grants.toml --dry-run
      qanat-server grant apply grants.toml
      qanat-server grant apply grants.toml --prune --yes
    """
    document = {"grant": [grant.as_table() for grant in _read(file)]}
    wanted: Json = {"document": document, "prune": prune}
    preview = perform(config, "POST", "grants/apply/preview", wanted)
    fingerprint = preview.pop("fingerprint")
    is_empty = not (preview["added"] or preview["changed"] or preview["removed"])
    if dry_run or is_empty:
        result = {**preview, "applied": False}
        print_json(result) if as_json else click.echo(_difference(preview))
        return
    confirm(_difference(preview), "Apply this?", yes=yes, as_json=as_json)
    made = perform(config, "POST", "grants/apply", {**wanted, "fingerprint": fingerprint})
    print_json({**made, "applied": True}) if as_json else click.echo("Applied.")


def _read(file: Path) -> tuple[Grant, ...]:
    """Return the grants of a file. Raises ``CommandError``, which names the file and the mistake."""
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(_MAX_FILE_BYTES + 1)
        else:
            with file.open("rb") as opened:
                data = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CommandError(ExitCode.FAILED, f"{file} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise CommandError(ExitCode.USAGE, f"{file} is larger than {_MAX_FILE_BYTES} bytes")
    try:
        return parse_grants(data.decode())
    except (GrantError, UnicodeDecodeError) as error:
        raise CommandError(ExitCode.USAGE, f"{file}: {error}; nothing was changed") from None


def _difference(changes: Json) -> str:
    """Return the lines of a difference: + for added, ~ for changed, - for removed grants."""
    lines = [*_lines("+", changes["added"])]
    for grant in changes["changed"]:
        before, after = (format_grants([_of_json(one)]).splitlines()[2:] for one in (grant["before"], grant))
        lines.append(f"~ {grant['id']}:")
        lines += [f"    - {line}" for line in before if line not in after]
        lines += [f"    + {line}" for line in after if line not in before]
    lines += _lines("-", changes["removed"])
    unchanged = f"{counted(changes['unchanged'], 'grant')} of the file unchanged."
    return "\n".join([*lines, unchanged if lines else f"Nothing to change: {unchanged}"])


def _lines(mark: str, grants: Iterable[Json]) -> Iterator[str]:
    return (f"{mark} {grant['id']}: {grant['text']}" for grant in grants)
