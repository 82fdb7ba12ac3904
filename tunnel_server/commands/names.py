"""Shell completion of the names that the running server's store has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import click
from click.shell_completion import CompletionItem

from tunnel_core.cli.completed_names import answer_in_time, items_beginning
from tunnel_server.commands.access import load_config
from tunnel_server.commands.server_client import ask_server

Complete: TypeAlias = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completing(path: str, key: str, name: str, **arguments: str) -> Complete:
    """Return a completion of the texts ``name`` in the list ``key`` that GET ``path`` returns."""

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        async def ask() -> dict[str, Any]:
            socket = load_config(context.params.get("config")).admin.socket
            return await ask_server(socket, "GET", path, arguments)

        items: Iterable[Mapping[str, Any]] = answer_in_time(ask).get(key, ())
        names = sorted({str(item[name]) for item in items})
        return items_beginning(((one, None) for one in names), incomplete)

    return complete


complete_node = _completing("certificates", "certificates", "name", role="node")
"""The nodes that have a certificate."""
complete_user = _completing("users", "users", "name")
complete_group = _completing("groups", "groups", "name")
complete_grant = _completing("grants", "grants", "id")
complete_api_token = _completing("api-tokens", "api_tokens", "id")
