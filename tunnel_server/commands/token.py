"""``qanat-server token``: what lets a new node in."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from certs.files import write_private
from tunnel_core.cli.command_line import CommandError, CommandGroup, ExitCode, print_json
from tunnel_core.cli.tables import Table, show_list, wide_option
from tunnel_core.humanize import minute_of
from tunnel_server.commands.access import config_option, json_option, perform
from tunnel_server.commands.confirming import confirm, yes_option
from tunnel_server.commands.durations import duration

_TABLE = Table(("token", "state", "used", "expires", "for"), ("created", "created by"))


@click.group("token", cls=CommandGroup)
def command() -> None:
    """Make, list and revoke the tokens with which new nodes join.

    \b
    Examples:
      qanat-server token create --node shop-7
      qanat-server token create --match 'shop-*' --uses 50 --ttl 24h
      qanat-server token list
    """


@command.command("create")
@click.option("--node", default="", metavar="NAME", help="The one node that may join with it.")
@click.option("--match", default="", metavar="PATTERN", help="All nodes that match; * is anything but a dot.")
@click.option("--uses", type=click.IntRange(1), default=1, show_default=True, help="How many nodes of those.")
@click.option(
    "--ttl", type=duration, default="24h", show_default=True, help="How long it holds: 15m, 24h, 7d."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it to this file and show it nowhere.",
)
@config_option
@json_option
def create(
    node: str, match: str, uses: int, ttl: float, out: Path | None, config: Path | None, as_json: bool
) -> None:
    """Make a token and print the line to paste on the node. The token is shown this once.

    \b
    Examples:
      qanat-server token create --node shop-7
      qanat-server token create --match 'shop-*' --uses 50 --ttl 24h
      qanat-server token create --node shop-7 --out token
    """
    wanted = {"node": node, "match": match, "uses": uses, "ttl_seconds": ttl}
    made = perform(config, "POST", "tokens/create", wanted)
    if out is not None:
        _write(out, str(made.pop("token")))
        made["file"] = str(out)
    print_json(made) if as_json else click.echo(_as_text(made))


def _write(file: Path, token: str) -> None:
    """For its owner's eyes alone. Raises ``CommandError``."""
    try:
        write_private(file, f"{token}\n".encode())
    except OSError as error:
        message = f"{file} cannot be written: {error.strerror}; the token is lost, make another"
        raise CommandError(ExitCode.FAILED, message) from None


@command.command("list")
@wide_option
@config_option
@json_option
def list_tokens(wide: bool, config: Path | None, as_json: bool) -> None:
    """List the tokens: for whom, how often used, until when (UTC). Nothing secret is shown.

    A token for a node that was revoked later is revoked with that node.

    \b
    Example:
      qanat-server token list
    """
    answer = perform(config, "GET", "tokens", {})
    nothing = "There is no token. Make one: qanat-server token create --node NAME"
    show_list(answer, _TABLE, map(_row, answer["tokens"]), nothing, as_json=as_json, wide=wide)


@command.command("revoke")
@click.argument("token_id", metavar="TOKEN")
@yes_option
@config_option
@json_option
def revoke(token_id: str, yes: bool, config: Path | None, as_json: bool) -> None:
    """Revoke TOKEN, by the name that `token list` shows. Nodes that joined with it stay.

    At a terminal it shows the token and asks first.

    \b
    Example:
      qanat-server token revoke mfrggzdfmztwq2lk
    """
    found = perform(config, "GET", "token", {"id": token_id})["token"]
    if found["state"] == "revoked" and not found.get("revoked_with_node"):
        print_json({"revoked": token_id}) if as_json else click.echo(f"Token {token_id} is revoked already.")
        return
    confirm(_ending(found), f"Revoke token {token_id}?", yes=yes, as_json=as_json, needs_yes=False)
    answer = perform(config, "POST", "tokens/revoke", {"id": token_id})
    print_json(answer) if as_json else click.echo(f"Revoked token {token_id}.")


def _ending(token: dict[str, Any]) -> str:
    whom = f"node {token['node']}" if token["node"] else f"nodes that match {token['match']}"
    used = f"used {token['used']} of {token['uses']} times"
    return (
        f"Token {token['id']} is for {whom}, {token['state']}, {used}, until {minute_of(token['expires'])}."
        " Nodes that joined with it stay; no other joins."
    )


def _as_text(made: dict[str, Any]) -> str:
    whom = f"node {made['node']}" if made["node"] else f"{made['uses']} nodes that match {made['match']}"
    server = made["servers"][0] if made["servers"] else "SERVER:PORT"
    join = f"qanat-agent join {shlex.quote(server)}"
    if "file" in made:
        once, join = f"It is in {made['file']}.", f"{join} --token-file {shlex.quote(made['file'])}"
    else:
        once, join = "It is shown this once.", f"echo {made['token']} | {join}"
    said = f"Token {made['id']} for {whom}, until {minute_of(made['expires'])}. {once}"
    note = [] if made["node"] else ["", f"Its host name must fit {made['match']}, or it adds --name NAME."]
    return "\n".join([said, "", "On the node:", f"  {join}", *note])


def _row(token: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(token["id"], token["state"], f"{token['used']} of {token['uses']}", minute_of(token["expires"])),
        *(token["node"] or token["match"], minute_of(token["created"]), token["created_by"]),
    )
