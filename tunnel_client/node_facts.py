"""Readers of the server's JSON about nodes. A server of another version may send fewer or other fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from tunnel_client.api import ask, ask_nodes
from tunnel_client.dial import Dialer
from tunnel_core.cli.tables import Row, Table
from tunnel_core.humanize import length_of, milliseconds_of, size_of
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.state import StateCategory, category_of_word

Item = Mapping[str, Any]

NODES = Table(("node", "state", "rtt", "streams", "services"), ("alias", "address", "in", "out"))
STREAMS = Table(("stream", "node", "user", "age", "in", "out", "target"), ("entrance",))
SERVICES = Table(("node", "service", "protocol", "state", "target"))


def category_of(node: Item) -> StateCategory | None:
    """Return the category of the node's state, or None if this version does not know the server's word."""
    word = node.get("category")
    if isinstance(word, str) and word in {category.value for category in StateCategory}:
        return StateCategory(word)
    return category_of_word(node.get("state"))


async def ask_node(dialer: Dialer, name: str) -> dict[str, Any]:
    """Return ``node``, ``streams`` and ``events`` of one node, by name or alias.

    An older server has no page for one node. Then the answer comes from the page of all nodes, with fewer
    fields. Raises ``Refused`` with ``UNKNOWN_NODE``, and the errors of ``ask``.
    """
    try:
        return await ask(dialer, f"nodes/{quote(name, safe='')}")
    except Refused as refused:
        if refused.reason is not Reason.NOT_FOUND:
            raise
    node = _named(await ask_nodes(dialer), name)
    streams = items_of(await ask_if_there(dialer, "streams"), "streams")
    events = await ask_if_there(dialer, f"events?{urlencode({'node': name})}")
    own = [stream for stream in streams if stream.get("node") == node.get("name")]
    return {"node": node, "streams": own, "events": items_of(events, "events")[-20:]}


def _named(answer: Item, name: str) -> Item:
    """Return the node with this name, or else with this alias. The server prevents a name that is both."""
    for key in ("name", "alias"):
        for node in items_of(answer, "nodes"):
            if node.get(key) == name:
                return node
    raise Refused(Reason.UNKNOWN_NODE, f"no node {name} is known; see: qanat nodes")


async def ask_if_there(dialer: Dialer, page: str) -> dict[str, Any]:
    """Return the page, or an empty object if the server does not have it. Raises as ``ask``."""
    try:
        return await ask(dialer, page)
    except Refused as refused:
        if refused.reason is not Reason.NOT_FOUND:
            raise
        return {}


def items_of(answer: Item, key: str) -> list[Item]:
    """Return the objects in a list of ``answer``, or none if the value is not a list."""
    items = answer.get(key)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def text_of(item: Item, key: str) -> str:
    """Return a field as text, empty if it is missing."""
    value = item.get(key)
    return "" if value is None else str(value)


def node_row(node: Item) -> Row:
    """Return the row of a node in the table ``NODES``."""
    return (
        text_of(node, "name"),
        state_of(node),
        milliseconds_of(node.get("round_trip_ms")),
        text_of(node, "streams"),
        ", ".join(
            f"{text_of(service, 'name')} ({text_of(service, 'protocol')})"
            for service in items_of(node, "services")
        ),
        text_of(node, "alias"),
        text_of(node, "address"),
        *traffic_of(node),
    )


def state_of(node: Item) -> str:
    """Return the state in words: ``attached 3m``, ``degraded, silent 9s``, ``gone 2h ping_timeout``."""
    match node.get("state"):
        case "degraded":
            parts = ["degraded, silent", length_of(node.get("silent_seconds"))]
        case "gone" if node.get("last_seen", "") is None:
            parts = ["never attached"]
        case _:
            duration = length_of(node.get("seconds"))
            parts = [text_of(node, "state"), duration, text_of(node, "last_reason")]
    if node.get("revoked") and node.get("last_reason") != "revoked":
        parts.append("revoked")
    if node.get("duplicate"):
        parts.append("duplicate")
    return " ".join(filter(None, parts))


def stream_row(stream: Item) -> Row:
    """Return the row of a stream in the table ``STREAMS``."""
    return (
        *(text_of(stream, key) for key in ("id", "node", "user")),
        length_of(stream.get("age_seconds")),
        *traffic_of(stream),
        text_of(stream, "target"),
        text_of(stream, "entrance"),
    )


def service_rows(node: Item) -> list[Row]:
    """Return the rows of a node's services in the table ``SERVICES``."""
    return [
        (
            text_of(node, "name"),
            *(text_of(service, key) for key in ("name", "protocol")),
            state_of(node),
            text_of(service, "target"),
        )
        for service in items_of(node, "services")
    ]


def traffic_of(item: Item) -> tuple[str, str]:
    """Return the received and sent bytes in readable form."""
    return size_of(item.get("bytes_in")), size_of(item.get("bytes_out"))
