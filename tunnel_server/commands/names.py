"""Names of nodes that a shell completes, as the running server's store has them.

A shell waits for these, so they have a deadline, and after any failure nothing is completed or printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import trio
from click.shell_completion import CompletionItem

from tunnel_server.admin.client import ask_server
from tunnel_server.commands.access import load_config

COMPLETE_SECONDS = 1.5
_MAX_SHOWN = 200


def complete_node(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the nodes that hold a certificate and whose names begin with what was typed."""
    try:
        socket = load_config(context.params.get("config")).admin.socket
        answer = trio.run(_ask, socket)
    except Exception:  # a message would disturb the command line that is being typed
        return []
    names = sorted({str(one["name"]) for one in answer.get("certificates", ())})
    return [CompletionItem(name) for name in names if name.startswith(incomplete)][:_MAX_SHOWN]


async def _ask(socket: Path) -> dict[str, Any]:
    with trio.move_on_after(COMPLETE_SECONDS):
        return await ask_server(socket, "GET", "certificates", {"role": "node"})
    return {}
