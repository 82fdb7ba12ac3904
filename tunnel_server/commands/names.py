"""Shell completion of node names, from the running server's store."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from tunnel_core.cli.completed_names import answer_in_time, items_beginning
from tunnel_server.commands.access import load_config
from tunnel_server.commands.server_client import ask_server


def complete_node(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the nodes that have a certificate and whose names begin with ``incomplete``."""

    async def ask() -> dict[str, Any]:
        socket = load_config(context.params.get("config")).admin.socket
        return await ask_server(socket, "GET", "certificates", {"role": "node"})

    certificates = answer_in_time(ask).get("certificates", ())
    names = sorted({str(certificate["name"]) for certificate in certificates})
    return items_beginning(((name, None) for name in names), incomplete)
