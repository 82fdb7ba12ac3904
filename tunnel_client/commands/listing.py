"""``qanat nodes``, ``sessions``, ``streams`` and ``version``: what the server knows, as tables or JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from tunnel_client import words
from tunnel_client.api import ask
from tunnel_client.commands.options import access, bundle_option, json_option, run
from tunnel_core.command_line import print_json
from tunnel_core.tables import Row, show, show_list

_Item = Mapping[str, Any]
_NODE_COLUMNS = ("node", "alias", "state", "address", "rtt", "streams", "in", "out", "services")
_SESSION_COLUMNS = ("session", "node", "age", "address", "software", "rtt", "streams", "in", "out")
_STREAM_COLUMNS = ("stream", "node", "target", "user", "entrance", "age", "in", "out")


@click.command("nodes")
@bundle_option
@json_option
def nodes(bundle: Path | None, as_json: bool) -> None:
    """List the nodes that the server knows, and what a request to each would meet.

    attached; degraded: it answers late; grace: its link is lost, and its streams wait; gone: it has no
    agent attached; never attached. Beside it: for how long, and why. "duplicate": two machines attach as
    this node. "revoked": it is shut out.

    \b
    Examples:
      qanat nodes
      qanat nodes --json | jq -r '.nodes[] | select(.state == "gone") | .name'
    """
    nothing = "No node is known yet. On the server: qanat-server token create --node edge1"
    _list("nodes", bundle, as_json, _NODE_COLUMNS, _node_row, nothing)


@click.command("sessions")
@bundle_option
@json_option
def sessions(bundle: Path | None, as_json: bool) -> None:
    """List the sessions of the nodes that are attached now.

    \b
    Example:
      qanat sessions
    """
    _list("sessions", bundle, as_json, _SESSION_COLUMNS, _session_row, "No node is attached.")


@click.command("streams")
@bundle_option
@json_option
def streams(bundle: Path | None, as_json: bool) -> None:
    """List the connections that run through the tunnel now.

    \b
    Examples:
      qanat streams
      watch qanat streams
    """
    _list("streams", bundle, as_json, _STREAM_COLUMNS, _stream_row, "No stream is open.")


@click.command("version")
@bundle_option
@json_option
def version(bundle: Path | None, as_json: bool) -> None:
    """Show the version of this command and of the server.

    \b
    Example:
      qanat version
    """
    own = metadata.version("qanat")
    server = run(ask, access(bundle).need_api(), "version")
    if as_json:
        print_json({"client": own, "server": server})
    else:
        rows = [("qanat", own), *((f"server {name}", str(value)) for name, value in server.items())]
        show(("what", "version"), rows)


def _list(
    page: str,
    bundle: Path | None,
    as_json: bool,
    columns: Row,
    row: Callable[[_Item, datetime], Row],
    nothing: str,
) -> None:
    answer = run(ask, access(bundle).need_api(), page)
    now = datetime.now(UTC)
    rows = (row(item, now) for item in _items(answer, page))
    show_list(answer, columns, rows, nothing, as_json=as_json)


def _items(answer: _Item, page: str) -> list[_Item]:
    """The list on a page; what another version may have put elsewhere reads as nothing."""
    items = answer.get(page)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _node_row(node: _Item, _: datetime) -> Row:
    return (
        _text(node, "name"),
        _text(node, "alias"),
        _state(node),
        _text(node, "address"),
        words.milliseconds(node.get("round_trip_ms")),
        _text(node, "streams"),
        *_traffic(node),
        ", ".join(map(_service, _items(node, "services"))),
    )


def _state(node: _Item) -> str:
    """``attached 3m``, ``degraded, silent 9s``, ``grace 9s carrier_lost``, ``gone 2h ping_timeout``."""
    if node.get("state") == "degraded":
        told = ["degraded, silent", words.duration(node.get("silent_seconds"))]
    elif node.get("state") == "gone" and node.get("last_seen", "") is None:
        told = ["never attached"]
    else:
        told = [_text(node, "state"), words.duration(node.get("seconds")), _text(node, "last_reason")]
    if node.get("revoked") and node.get("last_reason") != "revoked":
        told.append("revoked")
    if node.get("duplicate"):
        told.append("duplicate")
    return " ".join(filter(None, told))


def _service(service: _Item) -> str:
    return f"{_text(service, 'name')} ({_text(service, 'protocol')})"


def _session_row(session: _Item, now: datetime) -> Row:
    return (
        _text(session, "id"),
        _text(session, "node"),
        words.age(session.get("since"), now),
        _text(session, "address"),
        _text(session, "software"),
        words.milliseconds(session.get("round_trip_ms")),
        _text(session, "streams"),
        *_traffic(session),
    )


def _stream_row(stream: _Item, _: datetime) -> Row:
    return (
        *(_text(stream, key) for key in ("id", "node", "target", "user", "entrance")),
        words.duration(stream.get("age_seconds")),
        *_traffic(stream),
    )


def _traffic(item: _Item) -> tuple[str, str]:
    return words.size(item.get("bytes_in")), words.size(item.get("bytes_out"))


def _text(item: _Item, key: str) -> str:
    value = item.get(key)
    return "" if value is None else str(value)
