"""``qanat policy``: whether a user may do something, and which grant of the server decides."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from tunnel_client.api import ask
from tunnel_client.commands.names import complete_node, complete_target
from tunnel_client.commands.options import access, bundle_option, json_option, run
from tunnel_core.cli.command_line import ExitCode, print_json, printable

_VERBS = ("connect", "http", "api", "admin")


@click.group("policy")
def policy() -> None:
    """Ask what the grants of the server allow.

    \b
    Example:
      qanat policy test kim connect edge1 ssh
    """


@policy.command("test")
@click.argument("user")
@click.argument("verb", type=click.Choice(_VERBS))
@click.argument("node", default="", shell_complete=complete_node)
@click.argument("target", default="", shell_complete=complete_target)
@bundle_option
@json_option
def test(user: str, verb: str, node: str, target: str, bundle: Path | None, as_json: bool) -> None:
    """Say whether USER may do VERB on NODE and TARGET, and which grant decides or comes nearest.

    VERB is connect (a raw stream), http (in a browser), api (reading a node, without a target) or admin
    (without node and target). A port as TARGET is a port of the node itself. A question about another user
    needs the verb admin, or the admin socket of the server.

    Yes and no have the exit codes 0 and 3. The agent's own allow-list is not asked: see qanat-agent check.

    \b
    Examples:
      qanat policy test kim connect edge1 ssh
      qanat policy test kim api edge1
      qanat policy test kim http edge1 web --json | jq -r .grant.id
    """
    given = {"user": user, "verb": verb, "node": node, "target": target}
    query = urlencode({key: value for key, value in given.items() if value})
    answer = run(ask, access(bundle).need_api(), f"policy?{query}")
    print_json(answer) if as_json else click.echo(_line(answer))
    if answer.get("allowed") is not True:
        sys.exit(ExitCode.REFUSED)


def _line(answer: Mapping[str, Any]) -> str:
    word = "yes" if answer.get("allowed") is True else "no"
    return printable(f"{word}: {answer.get('detail') or ''}")
