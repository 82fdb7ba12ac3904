"""``qanat events``: events of nodes, as a list or as they happen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click
import trio

from tunnel_client.api import ask
from tunnel_client.commands.names import complete_node
from tunnel_client.commands.options import access, bundle_option, json_option, run, run_until_signal
from tunnel_client.dial import Dialer, ServerUnreachable
from tunnel_client.node_facts import items_of
from tunnel_client.node_view import EVENTS, event_row
from tunnel_core.cli.command_line import printable
from tunnel_core.cli.tables import show_list, wide_option
from tunnel_core.runtime.ending import STANDARD_OUTPUT, wait_writable

_POLL_SECONDS = 25
_RETRY_SECONDS = 2.0
_PAUSE_SECONDS = 0.2
"""Pause between two requests, so that a storm of events costs few connections."""
_GAP = "some events before these are lost, because the server keeps a bounded number"


@click.command("events")
@click.argument("node", default="", shell_complete=complete_node)
@click.option("--follow", "-f", is_flag=True, help="Print new events as they happen, until Ctrl-C.")
@wide_option
@bundle_option
@json_option
def events(node: str, follow: bool, wide: bool, bundle: Path | None, as_json: bool) -> None:
    """List when and why nodes attached, lost their link and resumed; with NODE, only of this node.

    Without NODE the list also has starts and stops of the server. The server keeps the last 10,000 events.
    --follow continues after a restart of the server; with --json it prints one event a line.

    \b
    Examples:
      qanat events
      qanat events edge1 --follow
      qanat events --json | jq -r '.events[] | select(.kind == "lost") | .node'
    """
    dialer = access(bundle).need_api()
    if follow:
        run_until_signal(_follow, dialer, node, as_json)
    else:
        _list(run(ask, dialer, _page(node)), as_json, wide)


def _page(node: str, **more: int) -> str:
    wanted = {key: value for key, value in {"node": node, **more}.items() if value != ""}
    return f"events?{urlencode(wanted)}" if wanted else "events"


def _list(answer: Mapping[str, Any], as_json: bool, wide: bool) -> None:
    nothing = "The server has no such event."
    rows = map(event_row, items_of(answer, "events"))
    show_list(answer, EVENTS, rows, nothing, as_json=as_json, wide=wide)


async def _follow(dialer: Dialer, node: str, as_json: bool) -> None:
    answer = await ask(dialer, _page(node))
    while True:
        for event in items_of(answer, "events"):
            await wait_writable(STANDARD_OUTPUT)  # A signal can end this wait if the reader has stopped.
            click.echo(json.dumps(event) if as_json else _line(event))
        await trio.sleep(_PAUSE_SECONDS)
        answer = await _ask_newer(dialer, node, _last_of(answer))
        if answer.get("gap"):
            click.echo(f"qanat: {_GAP}", err=True)


async def _ask_newer(dialer: Dialer, node: str, after: int) -> dict[str, Any]:
    """Return the next answer. Retry while the server is unreachable."""
    is_reported = False
    while True:
        try:
            page = _page(node, after=after, wait=_POLL_SECONDS)
            return await ask(dialer, page, wait_seconds=_POLL_SECONDS)
        except ServerUnreachable as error:
            if not is_reported:
                click.echo(f"qanat: {printable(str(error))}; retrying", err=True)
            is_reported = True
            await trio.sleep(_RETRY_SECONDS)


def _last_of(answer: Mapping[str, Any]) -> int:
    last = answer.get("last")
    return last if isinstance(last, int) else 0


def _line(event: Mapping[str, Any]) -> str:
    """Return an event as a line. The columns have fixed widths, because later events are not known yet."""
    time, node, kind, reason, detail = map(printable, event_row(event))
    return f"{time}  {node or '-':<16}  {kind:<14}  {reason or '-':<14}  {detail}".rstrip()
