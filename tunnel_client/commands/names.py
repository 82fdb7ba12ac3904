"""Names that a shell completes: nodes and services, as the server knows them now.

A shell waits for these, so they have a deadline, and after any failure nothing is completed or printed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import click
import trio
from click.shell_completion import CompletionItem

from tunnel_client.access import find_access
from tunnel_client.api import ask
from tunnel_client.dial import Dialer
from tunnel_client.node_facts import Item, ask_node, items_of, state_of, text_of
from tunnel_core.command_line import printable

COMPLETE_SECONDS = 1.5
_MAX_SHOWN = 200


def complete_node(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the nodes whose names begin with what was typed."""
    return [
        CompletionItem(text_of(node, "name"), help=printable(state_of(node)))
        for node in items_of(_answer(context, lambda api: ask(api, "nodes?brief=1")), "nodes")
        if text_of(node, "name").startswith(incomplete)
    ][:_MAX_SHOWN]


def complete_login(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The same for ``user@node``."""
    user, at, node = incomplete.rpartition("@")
    found = complete_node(context, parameter, node)
    return [CompletionItem(f"{user}{at}{item.value}", help=item.help) for item in found]


def complete_behind_at(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return nodes behind ``user@`` in bash, where ``@`` begins a word; else nothing."""
    before = context.params.get("arguments") or ()
    typed = incomplete if before == ("@",) else incomplete[1:] if incomplete[:1] == "@" else None
    if typed is None or before not in ((), ("@",)):
        return []
    found = complete_node(context, parameter, typed)
    return [CompletionItem(f"@{item.value}", help=item.help) for item in found]


def complete_target(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the services of the node that was typed before."""
    name = str(context.params.get("node") or "")
    node = _answer(context, lambda api: ask_node(api, name)).get("node") if name else None
    return [
        CompletionItem(text_of(service, "name"), help=printable(text_of(service, "target")))
        for service in items_of(node if isinstance(node, dict) else {}, "services")
        if text_of(service, "name").startswith(incomplete)
    ][:_MAX_SHOWN]


def _answer(context: click.Context, question: Callable[[Dialer], Awaitable[dict[str, Any]]]) -> Item:
    async def ask_in_time(api: Dialer) -> Item:
        with trio.move_on_after(COMPLETE_SECONDS):
            return await question(api)
        return {}

    try:
        bundle = context.params.get("bundle") or context.find_root().params.get("bundle")
        return trio.run(ask_in_time, find_access(bundle).need_api())
    except Exception:  # a message would disturb the command line that is being typed
        return {}
