"""``qanat-server token``: tokens with which new nodes join."""

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

out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the token to this file, and do not print it.",
)
_TABLE = Table(("token", "state", "used", "expires", "for"), ("created", "created by"))


@click.group("token", cls=CommandGroup)
def command() -> None:
    """Create, list and revoke the tokens with which new nodes join.

    \b
    Examples:
      qanat-server token create --node shop-7
      qanat-server token create --match 'shop-*' --uses 50 --ttl 24h
      qanat-server token list
    """


@command.command("create")
@click.option("--node", default="", metavar="NAME", help="The only node that may join with it.")
@click.option(
    "--match", default="", metavar="PATTERN", help="All matching nodes; * is any text without a dot."
)
@click.option(
    "--uses", type=click.IntRange(1), default=1, show_default=True, help="Number of nodes that may join."
)
@click.option(
    "--ttl", type=duration, default="24h", show_default=True, help="Time for which it is valid: 15m, 24h, 7d."
)
@out_option
@config_option
@json_option
def create(
    node: str, match: str, uses: int, ttl: float, out: Path | None, config: Path | None, as_json: bool
) -> None:
    """Create a token and print the command for the node. The token is shown only this time.

    \b
    Examples:
      qanat-server token create --node shop-7
      qanat-server token create --match 'shop-*' --uses 50 --ttl 24h
      qanat-server token create --node shop-7 --out token
    """
    wanted = {"node": node, "match": match, "uses": uses, "ttl_seconds": ttl}
    made = perform(config, "POST", "tokens/create", wanted)
    if out is not None:
        write_token(out, made)
    print_json(made) if as_json else click.echo(_as_text(made))


def write_token(file: Path, made: dict[str, Any]) -> None:
    """Move the token of ``made`` to a file with mode 0600, named there instead. Raises ``CommandError``."""
    try:
        write_private(file, f"{made.pop('token')}\n".encode())
    except OSError as error:
        message = f"{file} cannot be written: {error.strerror}; the token is lost, create another"
        raise CommandError(ExitCode.FAILED, message) from None
    made["file"] = str(file)


@command.command("list")
@wide_option
@config_option
@json_option
def list_tokens(wide: bool, config: Path | None, as_json: bool) -> None:
    """List the tokens with their nodes, uses and expiry (UTC). Secrets are not shown.

    A revocation of the node also revokes the token.

    \b
    Example:
      qanat-server token list
    """
    answer = perform(config, "GET", "tokens", {})
    nothing = "There is no token. Create one: qanat-server token create --node NAME"
    show_list(answer, _TABLE, map(_row, answer["tokens"]), nothing, as_json=as_json, wide=wide)


@command.command("revoke")
@click.argument("token_id", metavar="TOKEN")
@yes_option
@config_option
@json_option
def revoke(token_id: str, yes: bool, config: Path | None, as_json: bool) -> None:
    """Revoke TOKEN, by the id that `token list` shows. Nodes that joined with it are not affected.

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
    subject = f"node {token['node']}" if token["node"] else f"nodes that match {token['match']}"
    used = f"used {token['used']} of {token['uses']} times"
    return (
        f"Token {token['id']} is for {subject}, {token['state']}, {used},"
        f" until {minute_of(token['expires'])}."
        " Nodes that joined with it are not affected; no other node can join."
    )


def _as_text(made: dict[str, Any]) -> str:
    subject = f"node {made['node']}" if made["node"] else f"{made['uses']} nodes that match {made['match']}"
    server = made["servers"][0] if made["servers"] else "SERVER:PORT"
    join = f"qanat-agent join {shlex.quote(server)}"
    if "file" in made:
        once, join = f"It is in {made['file']}.", f"{join} --token-file {shlex.quote(made['file'])}"
    else:
        once, join = "It is shown only this time.", f"echo {made['token']} | {join}"
    sentence = f"Token {made['id']} for {subject}, until {minute_of(made['expires'])}. {once}"
    note = (
        []
        if made["node"]
        else ["", f"Add --name NAME if the node's host name does not match {made['match']}."]
    )
    return "\n".join([sentence, "", "On the node:", f"  {join}", *note])


def _row(token: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(token["id"], token["state"], f"{token['used']} of {token['uses']}", minute_of(token["expires"])),
        *(token["node"] or token["match"], minute_of(token["created"]), token["created_by"]),
    )
