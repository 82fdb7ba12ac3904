"""``/api/v1/status`` and ``/api/v1/nodes/NAME``: the whole server, and one node in full.

A warning has the problem in ``detail`` and the remedy in ``cure``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain, islice
from typing import Any
from urllib.parse import unquote

from certs.validity import is_late
from tunnel_core.humanize import as_iso, as_length, as_minute, minute_of
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.state import StateCategory
from tunnel_core.version import __version__
from tunnel_server.api.lists import MayRead, in_pieces
from tunnel_server.api.server_facts import ServerFacts
from tunnel_server.nodes.registry import Node, Nodes, unknown_node
from tunnel_server.store.database import StoreError

STATUS_PATH = "/api/v1/status"
NODE_PATH = "/api/v1/nodes/"
EVENTS_OF_NODE = 20
_NODES_IN_A_PIECE = 100
"""One piece takes a millisecond of the event loop."""
MAX_WARNINGS = 200

Json = dict[str, Any]


async def status(nodes: Nodes, facts: ServerFacts, now: datetime, may_read: MayRead | None) -> Json:
    """Return the status of the whole server as JSON. A store that cannot be read becomes a warning.

    ``may_read`` selects the nodes that are counted and named; None selects all.
    """
    known, certificate = await _readable(nodes.all(), may_read), facts.certificate()
    ending, warnings = list[Json](), list[Json]()
    try:
        ending = [
            of_node for of_node in await facts.ending() if may_read is None or may_read(of_node["node"])
        ]
    except StoreError as error:
        warnings.append(_warning(f"the store cannot be read: {error.detail}", "read the server's log"))
    warnings += islice(chain(_of_server(facts, now), _of_ending(ending, now)), MAX_WARNINGS)
    states, absent = Counter[str](), Counter[str]()
    async for piece in in_pieces(known, _NODES_IN_A_PIECE):
        states.update(node.state for node in piece)
        absent.update(_kinds_of_absent(piece, nodes))
        warnings += islice(_of_nodes(piece, nodes, now), max(0, MAX_WARNINGS - len(warnings)))
    return {
        "version": __version__,
        "started": as_iso(facts.started),
        "uptime_seconds": max(0.0, round((now - facts.started).total_seconds(), 1)),
        "addresses": _network_addresses(facts.addresses()),
        "certificate": {
            "serial": certificate.serial,
            "ends": as_iso(certificate.ends),
            "names": list(certificate.names),
        },
        "nodes": dict(states),
        "nodes_gone": dict(absent),
        "streams": sum(len(node.session.streams) for node in known if node.session is not None),
        "ending": ending,
        "warnings": warnings,
    }


async def _readable(known: list[Node], may_read: MayRead | None) -> list[Node]:
    if may_read is None:
        return known
    pieces = in_pieces(known, _NODES_IN_A_PIECE)
    return [node async for piece in pieces for node in piece if may_read(node.name)]


def _kinds_of_absent(known: Sequence[Node], nodes: Nodes) -> Counter[str]:
    """Count the absent nodes that are revoked, and those that never attached."""
    kinds = Counter[str]()
    for node in known:
        if node.category is StateCategory.ABSENT:
            is_new = node.last_seen_at is None
            kinds["revoked"] += nodes.is_revoked(node.name)
            kinds["never_attached"] += is_new and not nodes.is_revoked(node.name)
    return +kinds


def _network_addresses(addresses: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the addresses without unix sockets, which are paths on the server's machine."""
    found = {
        name: [address for address in listed if not address.startswith("/")]
        for name, listed in addresses.items()
    }
    return {name: listed for name, listed in found.items() if listed}


def _of_server(facts: ServerFacts, now: datetime) -> Iterator[Json]:
    certificate = facts.certificate()
    if is_late(certificate.begins, certificate.ends, now):
        detail = f"the server's certificate ends at {as_minute(certificate.ends)} and was not renewed"
        yield _warning(detail, "on the server: run qanat-server ca show, and read the server's log")
    if facts.store.is_failing:
        cure = "on the server: check for a full disk, and read the server's log"
        yield _warning("the store cannot be written: the server cannot issue or revoke", cure)
    if facts.store.audit_dropped:
        detail = f"{facts.store.audit_dropped} lines of the audit were lost since the start"
        yield _warning(detail, "on the server: read its log; a restart sets the count to 0")


def _of_nodes(known: Sequence[Node], nodes: Nodes, now: datetime) -> Iterator[Json]:
    for node in known:
        if nodes.is_duplicate(node):
            cure = "give each agent its own bundle: qanat-server issue node NAME"
            yield _warning(f"two agents attach as node {node.name}", cure)
        if node.category is StateCategory.REACHABLE or nodes.is_revoked(node.name):
            continue
        if node.last_seen_at is None:
            forget = f"qanat-server node forget {node.name}"
            cure = f"on the node: qanat-agent run; if the node no longer exists: {forget}"
            yield _warning(f"node {node.name} has never attached", cure)
        else:
            since = as_length((now - node.since).total_seconds())
            why = f", {node.last_reason.word}" if node.last_reason else ""
            detail = f"node {node.name} is not reachable: {node.state} for {since}{why}"
            yield _warning(detail, "on the node: qanat-agent status, qanat-agent check")


def _of_ending(ending: Sequence[Json], now: datetime) -> Iterator[Json]:
    for certificate in ending:
        node, ends = certificate["node"], certificate["ends"]
        has_ended = str(ends) <= as_iso(now, "milliseconds")
        verb = "ended" if has_ended else "ends"
        detail = f"the certificate of node {node} {verb} at {minute_of(ends)}, not renewed"
        cure = "on the node: qanat-agent check, qanat-agent renew"
        if has_ended:
            token = f"qanat-server token create --node {node}"
            cure = f"{token}, then on the node: qanat-agent join --again"
        yield _warning(detail, cure)


def _warning(detail: str, cure: str) -> Json:
    return {"detail": detail, "cure": cure}


def find_node(nodes: Nodes, quoted: str, may_read: MayRead | None) -> Node:
    """Return the node whose name is ``quoted``, percent-encoded. Raises ``Refused``.

    ``may_read`` selects which similar name the refusal may tell; None selects all.
    """
    name = unquote(quoted, errors="replace")[:253]
    node = nodes.find(name)
    if node is None:
        near = nodes.nearest(name)
        told = near if near is not None and (may_read is None or may_read(near)) else None
        raise Refused(Reason.UNKNOWN_NODE, unknown_node(name, told))
    return node


async def certificate_of(node: Node, facts: ServerFacts) -> Json | None:
    """Return serial and end of the node's certificate, or None if this server does not know it."""
    try:
        certificate = await facts.node_certificate(node.name)
    except StoreError:
        return None
    return {"serial": certificate.serial, "ends": as_iso(certificate.ends)} if certificate else None
