"""Shell completion of node and service names, from the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from tunnel_client.access import find_access
from tunnel_client.api import ask
from tunnel_client.dial import Dialer
from tunnel_client.node_facts import Item, ask_node, items_of, state_of, text_of
from tunnel_core.cli.command_line import printable
from tunnel_core.cli.completed_names import answer_in_time, items_beginning


def complete_node(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the nodes whose names begin with ``incomplete``."""
    nodes = items_of(_answer(context, lambda api: ask(api, "nodes?brief=1")), "nodes")
    names = ((text_of(node, "name"), printable(state_of(node))) for node in nodes)
    return items_beginning(names, incomplete)


def complete_login(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the completions of ``user@node``."""
    user, at, node = incomplete.rpartition("@")
    found = complete_node(context, parameter, node)
    return [CompletionItem(f"{user}{at}{item.value}", help=item.help) for item in found]


def complete_behind_at(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the nodes after ``user@`` in bash, where ``@`` begins a word. Return nothing otherwise."""
    before = context.params.get("arguments") or ()
    typed = incomplete if before == ("@",) else incomplete[1:] if incomplete[:1] == "@" else None
    if typed is None or before not in ((), ("@",)):
        return []
    found = complete_node(context, parameter, typed)
    return [CompletionItem(f"@{item.value}", help=item.help) for item in found]


def complete_target(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the services of the node that the command line names."""
    name = str(context.params.get("node") or "")
    node = _answer(context, lambda api: ask_node(api, name)).get("node") if name else None
    services = items_of(node if isinstance(node, dict) else {}, "services")
    names = ((text_of(service, "name"), printable(text_of(service, "target"))) for service in services)
    return items_beginning(names, incomplete)


def _answer(context: click.Context, question: Callable[[Dialer], Awaitable[dict[str, Any]]]) -> Item:
    async def ask_server() -> Item:
        bundle = context.params.get("bundle") or context.find_root().params.get("bundle")
        return await question(find_access(bundle).need_api())

    return answer_in_time(ask_server)
