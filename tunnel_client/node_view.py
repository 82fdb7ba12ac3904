"""One node in full, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from tunnel_client.node_facts import (
    SERVICES,
    STREAMS,
    Item,
    items_of,
    service_rows,
    state_of,
    stream_row,
    text_of,
    traffic_of,
)
from tunnel_core.cli.tables import Row, Table, facts_of, lines_of
from tunnel_core.cli.terminal import line_width
from tunnel_core.humanize import length_of, milliseconds_of, minute_of, moment_of

EVENTS = Table(("time", "node", "event", "reason", "detail"))
_OF_ONE_NODE = Table(("time", "event", "reason", "detail"))


def event_row(event: Item) -> Row:
    """Return the row of an event in the table ``EVENTS``."""
    texts = (text_of(event, key) for key in ("node", "kind", "reason", "detail"))
    return (moment_of(event.get("at")), *texts)


def lines_of_node(answer: Item, *, wide: bool = False) -> list[str]:
    """Return the lines for an answer of ``node_facts.ask_node``, without missing facts."""
    node = answer.get("node")
    node = node if isinstance(node, dict) else {}
    lines = facts_of(_facts(node), 12, None if wide else line_width())
    streams, events = items_of(answer, "streams"), items_of(answer, "events")
    if services := service_rows(node):
        lines += ["", *lines_of(SERVICES, services, wide=wide)]
    if streams:
        lines += ["", *lines_of(STREAMS, [stream_row(stream) for stream in streams], wide=wide)]
    if events:
        rows = [(row[0], *row[2:]) for row in map(event_row, events)]
        lines += ["", *lines_of(_OF_ONE_NODE, rows, wide=wide)]
    return lines


def _facts(node: Item) -> Iterator[tuple[str, str]]:
    name, alias = text_of(node, "name"), text_of(node, "alias")
    yield "node", name if alias in ("", name) else f"{name} (alias {alias})"
    yield "state", state_of(node)
    yield "since", moment_of(node.get("since"))
    yield "session", _since(node.get("session_since"))
    yield "last seen", _last_seen(node)
    yield "address", text_of(node, "address")
    yield "software", text_of(node, "software")
    yield "round trip", milliseconds_of(node.get("round_trip_ms"))
    received, sent = traffic_of(node)
    yield "traffic", f"{received} in, {sent} out, {text_of(node, 'streams') or '0'} streams"
    yield "certificate", _certificate(node)


def _since(moment: object) -> str:
    shown = moment_of(moment)
    return f"since {shown}" if shown else ""


def _last_seen(node: Item) -> str:
    shown, silent = moment_of(node.get("last_seen")), length_of(node.get("silent_seconds"))
    return f"{shown} ({silent} ago)" if shown and silent else shown


def _certificate(node: Item) -> str:
    certificate = node.get("certificate")
    if not isinstance(certificate, dict):
        return ""
    ends = minute_of(certificate.get("ends"))
    return f"until {ends}, serial {text_of(certificate, 'serial')}" if ends else ""
