"""``qanat-server node`` and ``user``: throwing one out."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel_core.command_line import print_json
from tunnel_server.commands.access import config_option, json_option, perform
from tunnel_server.commands.names import complete_node

why_option = click.option("--why", default="", metavar="TEXT", help="For the audit.")


@click.group("node")
def node() -> None:
    """What is done to nodes by name. `qanat nodes` lists them.

    \b
    Example:
      qanat-server node revoke shop-7 --why 'stolen from the van'
    """


@click.group("user")
def user() -> None:
    """What is done to users by name.

    \b
    Example:
      qanat-server user revoke kim@example.com
    """


@node.command("revoke")
@click.argument("name", shell_complete=complete_node)
@why_option
@config_option
@json_option
def revoke_node(name: str, why: str, config: Path | None, as_json: bool) -> None:
    """Shut out node NAME: every certificate of that name that there is now, whoever issued it.

    It comes back only with a token made for it after this: `qanat-server token create --node NAME`.

    \b
    Example:
      qanat-server node revoke shop-7 --why 'stolen from the van'
    """
    answer = perform(config, "POST", "nodes/revoke", {"name": name, "why": why})
    back = f"It comes back only with a new token: qanat-server token create --node {name}"
    print_json(answer) if as_json else click.echo(f"Revoked node {name}. {back}")


@user.command("revoke")
@click.argument("name")
@why_option
@config_option
@json_option
def revoke_user(name: str, why: str, config: Path | None, as_json: bool) -> None:
    """Shut out user NAME: every certificate of that name that there is now, whoever issued it.

    He comes back with a new one: `qanat-server issue user NAME`.

    \b
    Example:
      qanat-server user revoke kim@example.com --why 'left the company'
    """
    answer = perform(config, "POST", "users/revoke", {"name": name, "why": why})
    back = f"Only a new certificate lets this user in again: qanat-server issue user {name}"
    print_json(answer) if as_json else click.echo(f"Revoked user {name}. {back}")
