"""``qanat events``: what befell the nodes, as a list or as it happens."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click
import trio

from tunnel_client import words
from tunnel_client.api import ask
from tunnel_client.commands.options import access, bundle_option, json_option, run
from tunnel_client.dial import Dialer, ServerUnreachable
from tunnel_core.command_line import ExitCode, printable
from tunnel_core.ending import ending_signals, forget_output, is_hung_up, wait_hung_up
from tunnel_core.tables import Row, show_list

_COLUMNS = ("time", "node", "event", "reason", "detail")
_OUTPUT = 1
_POLL_SECONDS = 25
_RETRY_SECONDS = 2.0
_BREATH_SECONDS = 0.2
"""Between two questions, whatever the server answers: a storm of events costs a few connections."""
_GAP = "events before these are gone: the server keeps no more"


@click.command("events")
@click.argument("node", default="")
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@bundle_option
@json_option
def events(node: str, follow: bool, bundle: Path | None, as_json: bool) -> None:
    """List when nodes attached, were lost, came back, and why; with NODE those of one node.

    Without NODE also when the server was started and stopped. The server keeps the last 10,000. --follow
    goes on over a restart of the server; with --json it prints one event a line.

    \b
    Examples:
      qanat events
      qanat events edge1 --follow
      qanat events --json | jq -r '.events[] | select(.kind == "lost") | .node'
    """
    dialer = access(bundle).need_api()
    if follow:
        run(_until_signal, dialer, node, as_json)
    else:
        _list(run(ask, dialer, _page(node)), as_json)


def _page(node: str, **more: int) -> str:
    wanted = {key: value for key, value in {"node": node, **more}.items() if value != ""}
    return f"events?{urlencode(wanted)}" if wanted else "events"


def _list(answer: Mapping[str, Any], as_json: bool) -> None:
    nothing = "The server knows of no such event."
    show_list(answer, _COLUMNS, map(_row, _events_of(answer)), nothing, as_json=as_json)


async def _until_signal(dialer: Dialer, node: str, as_json: bool) -> None:
    failure: Exception | None = None
    with trio.open_signal_receiver(*ending_signals()) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
            nursery.start_soon(_cancel_without_reader, nursery.cancel_scope)
            try:
                await _follow(dialer, node, as_json)
            except Exception as error:  # out of the nursery, which would wrap it in a group
                failure = error
            nursery.cancel_scope.cancel()
    if is_hung_up(_OUTPUT):
        forget_output()
        sys.exit(ExitCode.FAILED)
    if failure is not None:
        raise failure


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


async def _cancel_without_reader(scope: trio.CancelScope) -> None:
    """Else ``events --follow | head -1`` would wait for the next event to find its reader gone."""
    await wait_hung_up(_OUTPUT)
    scope.cancel()


async def _follow(dialer: Dialer, node: str, as_json: bool) -> None:
    answer = await ask(dialer, _page(node))
    while True:
        for event in _events_of(answer):
            click.echo(json.dumps(event) if as_json else _line(event))
        await trio.sleep(_BREATH_SECONDS)
        answer = await _ask_newer(dialer, node, _last_of(answer))
        if answer.get("gap"):
            click.echo(f"qanat: {_GAP}", err=True)


async def _ask_newer(dialer: Dialer, node: str, after: int) -> dict[str, Any]:
    """The next answer, from a server that may be away for a while."""
    told = False
    while True:
        try:
            page = _page(node, after=after, wait=_POLL_SECONDS)
            return await ask(dialer, page, wait_seconds=_POLL_SECONDS)
        except ServerUnreachable as error:
            if not told:
                click.echo(f"qanat: {printable(str(error))}; trying on", err=True)
            told = True
            await trio.sleep(_RETRY_SECONDS)


def _events_of(answer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    events = answer.get("events")
    return (event for event in (events if isinstance(events, list) else []) if isinstance(event, dict))


def _last_of(answer: Mapping[str, Any]) -> int:
    last = answer.get("last")
    return last if isinstance(last, int) else 0


def _row(event: Mapping[str, Any]) -> Row:
    texts = (str(event.get(key) or "") for key in ("node", "kind", "reason", "detail"))
    return (words.moment(event.get("at")), *texts)


def _line(event: Mapping[str, Any]) -> str:
    """Columns as wide as most need, because those to come are not known."""
    time, node, kind, reason, detail = map(printable, _row(event))
    return f"{time}  {node or '-':<16}  {kind:<14}  {reason or '-':<14}  {detail}".rstrip()
