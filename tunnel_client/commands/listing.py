"""``qanat services``, ``sessions``, ``streams`` and ``version``, as tables or JSON."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from tunnel_client.api import ask, ask_nodes
from tunnel_client.commands.options import access, bundle_option, json_option, run
from tunnel_client.node_facts import (
    SERVICES,
    STREAMS,
    Item,
    items_of,
    service_rows,
    stream_row,
    text_of,
    traffic_of,
)
from tunnel_core.cli.tables import Row, Table, show_list, wide_option
from tunnel_core.humanize import age_of, milliseconds_of
from tunnel_core.version import form

_SESSIONS = Table(("session", "node", "age", "rtt", "streams", "in", "out"), ("address", "software"))
_VERSIONS = Table(("what", "version"))


@click.command("services")
@wide_option
@bundle_option
@json_option
def services(wide: bool, bundle: Path | None, as_json: bool) -> None:
    """List the services that nodes publish, with the state of each node.

    \b
    Examples:
      qanat services
      qanat services --json | jq -r '.services[] | select(.protocol == "http") | .name'
    """
    nodes = items_of(run(ask_nodes, access(bundle).need_api()), "nodes")
    rows = (row for node in nodes for row in service_rows(node))
    answer = {"services": [service | _node_fields(node) for node in nodes for service in _services(node)]}
    show_list(answer, SERVICES, rows, "No node publishes a service now.", as_json=as_json, wide=wide)


def _services(node: Item) -> list[dict[str, Any]]:
    return [dict(service) for service in items_of(node, "services")]


def _node_fields(node: Item) -> dict[str, Any]:
    return {"node": node.get("name"), "state": node.get("state")}


@click.command("sessions")
@wide_option
@bundle_option
@json_option
def sessions(wide: bool, bundle: Path | None, as_json: bool) -> None:
    """List the sessions of attached nodes.

    \b
    Example:
      qanat sessions
    """
    answer, now = _ask("sessions", bundle), datetime.now(UTC)
    rows = (_session_row(session, now) for session in items_of(answer, "sessions"))
    show_list(answer, _SESSIONS, rows, "No node is attached.", as_json=as_json, wide=wide)


@click.command("streams")
@wide_option
@bundle_option
@json_option
def streams(wide: bool, bundle: Path | None, as_json: bool) -> None:
    """List the open streams: connections of users to targets.

    \b
    Examples:
      qanat streams
      watch qanat streams
    """
    answer = _ask("streams", bundle)
    rows: Iterable[Row] = map(stream_row, items_of(answer, "streams"))
    show_list(answer, STREAMS, rows, "No stream is open.", as_json=as_json, wide=wide)


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
    server = _ask("version", bundle)
    rows = [
        ("qanat", own),
        ("form", form()),
        *((f"server {name}", str(value)) for name, value in server.items()),
    ]
    show_list({"client": own, "client_form": form(), "server": server}, _VERSIONS, rows, "", as_json=as_json)


def _ask(page: str, bundle: Path | None) -> dict[str, Any]:
    return run(ask, access(bundle).need_api(), page)


def _session_row(session: Item, now: datetime) -> Row:
    return (
        *(text_of(session, key) for key in ("id", "node")),
        age_of(session.get("since"), now),
        milliseconds_of(session.get("round_trip_ms")),
        text_of(session, "streams"),
        *traffic_of(session),
        *(text_of(session, key) for key in ("address", "software")),
    )
