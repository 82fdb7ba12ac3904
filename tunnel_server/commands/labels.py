"""``qanat-server node label`` and ``node labels``: labels of nodes, which grants select by.

``revoke.py`` has the other commands about nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from tunnel_core.cli.command_line import print_json
from tunnel_core.cli.tables import Table, show_list, wide_option
from tunnel_core.identity import Role
from tunnel_server.commands.access import checked_name, config_option, json_option, perform
from tunnel_server.commands.names import complete_node
from tunnel_server.commands.revoke import node

_TABLE = Table(("node", "labels"))

__all__ = ["node"]


@node.command("label")
@click.argument("name", metavar="NODE", shell_complete=complete_node)
@click.argument("labels", nargs=-1, required=True, metavar="LABEL...")
@click.option("--force", is_flag=True, help="Label a node that the server does not know yet.")
@config_option
@json_option
def label(name: str, labels: tuple[str, ...], force: bool, config: Path | None, as_json: bool) -> None:
    """Set labels of NODE (key=value), or remove them (key-). Grants select nodes by label.

    A change acts at once: it can give access to the node, and take it away.

    \b
    Examples:
      qanat-server node label shop-7 site=hamburg tier=1
      qanat-server node label shop-7 tier-
    """
    wanted = {"name": checked_name(Role.NODE, name), "labels": list(labels), "force": force}
    answer = perform(config, "POST", "nodes/label", wanted)
    if as_json:
        print_json(answer)
        return
    now = _text(answer["labels"]) or "no labels"
    click.echo(f"Node {name} has {now}." if answer["changed"] else f"No change: node {name} has {now}.")


@node.command("labels")
@wide_option
@config_option
@json_option
def list_labels(wide: bool, config: Path | None, as_json: bool) -> None:
    """List the labels that were set on this server, by node.

    \b
    Example:
      qanat-server node labels
    """
    answer = perform(config, "GET", "labels", {})
    rows = ((name, _text(labels)) for name, labels in answer["labels"].items())
    nothing = "No node has a label. Set one: qanat-server node label NODE site=hamburg"
    show_list(answer, _TABLE, rows, nothing, as_json=as_json, wide=wide)


def _text(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())
