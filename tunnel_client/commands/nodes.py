"""``qanat nodes``: all nodes as a table, one node in full, or changes."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel_client.api import ask_nodes
from tunnel_client.commands.names import complete_node
from tunnel_client.commands.options import access, bundle_option, json_option, run, run_until_signal
from tunnel_client.node_facts import NODES, ask_node, items_of, node_row
from tunnel_client.node_view import lines_of_node
from tunnel_client.watching import watch_nodes
from tunnel_core.cli.command_line import print_json
from tunnel_core.cli.tables import show_list, wide_option


@click.command("nodes")
@click.argument("node", default="", shell_complete=complete_node)
@click.option("--watch", "-w", is_flag=True, help="Show changes until Ctrl-C.")
@wide_option
@bundle_option
@json_option
def nodes(node: str, watch: bool, wide: bool, bundle: Path | None, as_json: bool) -> None:
    """List the nodes that the server knows, with their state; with NODE, show one node in full.

    States: attached; degraded, it answers late; grace, its link is lost and its streams wait; gone, no
    agent is attached; never attached. Then follow the duration and the reason. "duplicate": two agents
    attach as this node. "revoked": the server refuses its agent.

    --watch refreshes the table in place. In a pipe, and with --json, it prints a line for each node
    that changes. It continues after a restart of the server.

    \b
    Examples:
      qanat nodes
      qanat nodes edge1
      qanat nodes --watch
      qanat nodes --json | jq -r '.nodes[] | select(.state == "gone") | .name'
    """
    dialer = access(bundle).need_api()
    if watch:
        run_until_signal(watch_nodes, dialer, node, wide=wide, as_json=as_json)
    elif node:
        answer = run(ask_node, dialer, node)
        print_json(answer) if as_json else click.echo("\n".join(lines_of_node(answer, wide=wide)))
    else:
        everything = run(ask_nodes, dialer)
        nothing = "No node is known yet. On the server: qanat-server token create --node edge1"
        rows = map(node_row, items_of(everything, "nodes"))
        show_list(everything, NODES, rows, nothing, as_json=as_json, wide=wide)
