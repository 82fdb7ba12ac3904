"""``qanat-server api-token``: tokens with which scripts prove who they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunnel_core.cli.command_line import CommandGroup, print_json
from tunnel_core.cli.tables import Table, show_list, wide_option
from tunnel_core.humanize import minute_of
from tunnel_core.identity import Role
from tunnel_server.commands.access import checked_name, config_option, json_option, perform
from tunnel_server.commands.confirming import confirm, yes_option
from tunnel_server.commands.durations import duration
from tunnel_server.commands.grant_hint import grant_hint
from tunnel_server.commands.names import complete_api_token, complete_user
from tunnel_server.commands.token import out_option, write_token

_TABLE = Table(("token", "user", "name", "state", "expires", "last used"), ("created", "created by"))


@click.group("api-token", cls=CommandGroup)
def command() -> None:
    """Create, list and revoke API tokens of users. No entrance accepts them yet.

    A token gives no rights of its own: the grants of its user count. `qanat-server token` makes the tokens
    with which nodes join.

    \b
    Examples:
      qanat-server api-token create nightly-backup --name build-3
      qanat-server api-token list
    """


@command.command("create")
@click.argument("user", shell_complete=complete_user)
@click.option("--name", required=True, metavar="TEXT", help="What the token is for; lists show it.")
@click.option(
    "--ttl", type=duration, default="90d", show_default=True, help="Time for which it is valid: 12h, 90d."
)
@out_option
@config_option
@json_option
def create(user: str, name: str, ttl: float, out: Path | None, config: Path | None, as_json: bool) -> None:
    """Create a token of USER. The token is shown only this time; the server keeps its SHA-256.

    \b
    Examples:
      qanat-server api-token create nightly-backup --name build-3
      qanat-server api-token create nightly-backup --name build-3 --ttl 30d --out token.txt
    """
    wanted = {"user": checked_name(Role.USER, user), "name": name, "ttl_seconds": ttl}
    made = perform(config, "POST", "api-tokens/create", wanted)
    if out is not None:
        write_token(out, made)
    steps = grant_hint(user, made["grants"], config)
    if as_json:
        print_json({**made, "next": steps})
        return
    where = f"It is in {made['file']}." if "file" in made else "It is shown only this time."
    lines = [f"API token {made['id']} of user {user}, until {minute_of(made['expires'])}. {where}"]
    lines += ["", f"  {made['token']}"] if "token" in made else []
    lines += ["", f"{user} may open nothing yet. Next:", *(f"  {step}" for step in steps)] if steps else []
    click.echo("\n".join(lines))


@command.command("list")
@click.option("--user", default="", metavar="NAME", shell_complete=complete_user, help="Tokens of this user.")
@wide_option
@config_option
@json_option
def list_tokens(user: str, wide: bool, config: Path | None, as_json: bool) -> None:
    """List the API tokens with their expiry and last use (UTC, within a minute). Secrets are not shown.

    \b
    Examples:
      qanat-server api-token list
      qanat-server api-token list --user nightly-backup
    """
    answer = perform(config, "GET", "api-tokens", {"user": user} if user else {})
    nothing = "There is no API token. Create one: qanat-server api-token create USER --name NAME"
    show_list(answer, _TABLE, map(_row, answer["api_tokens"]), nothing, as_json=as_json, wide=wide)


def _row(token: dict[str, Any]) -> tuple[str, ...]:
    used = minute_of(token["last_used"]) if token["last_used"] else ""
    return (
        *(token["id"], token["user"], token["name"], token["state"], minute_of(token["expires"]), used),
        *(minute_of(token["created"]), token["created_by"]),
    )


@command.command("revoke")
@click.argument("token_id", metavar="TOKEN", shell_complete=complete_api_token)
@yes_option
@config_option
@json_option
def revoke(token_id: str, yes: bool, config: Path | None, as_json: bool) -> None:
    """Revoke TOKEN at once, by the id that `api-token list` shows. Other tokens of its user stay valid.

    At a terminal it shows the token and asks first.

    \b
    Example:
      qanat-server api-token revoke mfrggzdfmztwq2lk
    """
    found = perform(config, "GET", "api-token", {"id": token_id})["api_token"]
    if found["state"] == "revoked":
        print_json({"revoked": token_id}) if as_json else click.echo(f"Token {token_id} is revoked already.")
        return
    used = f"last used {minute_of(found['last_used'])}" if found["last_used"] else "never used"
    what = f"Token {token_id} ({found['name']}) is of user {found['user']}, {found['state']}, {used}."
    confirm(what, f"Revoke API token {token_id}?", yes=yes, as_json=as_json, needs_yes=False)
    answer = perform(config, "POST", "api-tokens/revoke", {"id": token_id})
    print_json(answer) if as_json else click.echo(f"Revoked API token {token_id}.")
