"""``/api/v1/status`` and ``/api/v1/nodes/NAME``: the whole server, and one node in full.

A warning has ``detail``, what is wrong, and ``cure``, what to do about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain, islice
from typing import Any
from urllib.parse import unquote

from certs.life import is_late
from tunnel_core.humanize import as_iso, as_length, as_minute, minute_of
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.state import StateCategory
from tunnel_core.version import __version__
from tunnel_server.api.lists import in_pieces
from tunnel_server.api.server_facts import ServerFacts
from tunnel_server.nodes.registry import Node, Nodes, unknown_node
from tunnel_server.store.database import StoreError

STATUS_PATH = "/api/v1/status"
NODE_PATH = "/api/v1/nodes/"
EVENTS_OF_NODE = 20
_NODES_IN_A_PIECE = 100
"""A millisecond of the event loop."""
MAX_WARNINGS = 200

Json = dict[str, Any]


async def status(nodes: Nodes, facts: ServerFacts, now: datetime) -> Json:
    """Return the page on the whole server. Raises nothing: a store that cannot be read becomes a warning."""
    known, certificate = nodes.all(), facts.certificate()
    ending, warnings = list[Json](), list[Json]()
    try:
        ending = await facts.ending()
    except StoreError as error:
        warnings.append(_warning(f"the store cannot be read: {error.detail}", "see the server's log"))
    warnings += islice(chain(_of_server(facts, now), _of_ending(ending, now)), MAX_WARNINGS)
    states, gone = Counter[str](), Counter[str]()
    async for piece in in_pieces(known, _NODES_IN_A_PIECE):
        states.update(node.state for node in piece)
        gone.update(_kinds_of_gone(piece, nodes))
        warnings += islice(_of_nodes(piece, nodes, now), max(0, MAX_WARNINGS - len(warnings)))
    return {
        "version": __version__,
        "started": as_iso(facts.started),
        "uptime_seconds": max(0.0, round((now - facts.started).total_seconds(), 1)),
        "addresses": _over_the_network(facts.addresses()),
        "certificate": {
            "serial": certificate.serial,
            "ends": as_iso(certificate.ends),
            "names": list(certificate.names),
        },
        "nodes": dict(states),
        "nodes_gone": dict(gone),
        "streams": sum(len(link.streams) for _, link in nodes.attached()),
        "ending": ending,
        "warnings": warnings,
    }


def _kinds_of_gone(known: Sequence[Node], nodes: Nodes) -> Counter[str]:
    """How many of the nodes that are gone are shut out, or were never there."""
    kinds = Counter[str]()
    for node in known:
        if node.category is StateCategory.ABSENT:
            is_new = node.last_seen_at is None
            kinds["revoked"] += nodes.is_revoked(node.name)
            kinds["never_attached"] += is_new and not nodes.is_revoked(node.name)
    return +kinds


def _over_the_network(addresses: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Without the sockets in the server's own file system."""
    found = {name: [one for one in listed if not one.startswith("/")] for name, listed in addresses.items()}
    return {name: listed for name, listed in found.items() if listed}


def _of_server(facts: ServerFacts, now: datetime) -> Iterator[Json]:
    said = facts.certificate()
    if is_late(said.begins, said.ends, now):
        detail = f"the server's certificate ends at {as_minute(said.ends)} and was not renewed"
        yield _warning(detail, "on the server: qanat-server ca show, and see its log")
    if facts.store.is_failing:
        cure = "on the server: is the disk full? The log says what failed"
        yield _warning("the store cannot be written: nothing can be issued or revoked", cure)
    if facts.store.audit_dropped:
        detail = f"{facts.store.audit_dropped} lines of the audit were lost since the start"
        yield _warning(detail, "on the server: see its log; the count begins anew with the next start")


def _of_nodes(known: Sequence[Node], nodes: Nodes, now: datetime) -> Iterator[Json]:
    for node in known:
        if nodes.is_duplicate(node):
            cure = "give each agent a bundle of its own: qanat-server issue node NAME"
            yield _warning(f"two agents attach as node {node.name}", cure)
        if node.category is StateCategory.REACHABLE or nodes.is_revoked(node.name):
            continue
        if node.last_seen_at is None:
            forget = f"qanat-server node forget {node.name}"
            cure = f"on the node: qanat-agent run; if it will not come: {forget}"
            yield _warning(f"node {node.name} has never attached", cure)
        else:
            since = as_length((now - node.since).total_seconds())
            why = f", {node.last_reason.word}" if node.last_reason else ""
            detail = f"node {node.name} is not reachable: {node.state} for {since}{why}"
            yield _warning(detail, "on the node: qanat-agent status, qanat-agent check")


def _of_ending(ending: Sequence[Json], now: datetime) -> Iterator[Json]:
    for one in ending:
        has_ended = str(one["ends"]) <= as_iso(now, "milliseconds")
        verb = "ended" if has_ended else "ends"
        detail = f"the certificate of node {one['node']} {verb} at {minute_of(one['ends'])}, not renewed"
        cure = "on the node: qanat-agent check, qanat-agent renew"
        if has_ended:
            token = f"qanat-server token create --node {one['node']}"
            cure = f"{token}, then on the node: qanat-agent join --again"
        yield _warning(detail, cure)


def _warning(detail: str, cure: str) -> Json:
    return {"detail": detail, "cure": cure}


def find_node(nodes: Nodes, quoted: str) -> Node:
    """Return the node whose name is ``quoted``, percent-encoded. Raises ``Refused``."""
    name = unquote(quoted, errors="replace")[:253]
    node = nodes.find(name)
    if node is None:
        raise Refused(Reason.UNKNOWN_NODE, unknown_node(name, nodes.nearest(name)))
    return node


async def certificate_of(node: Node, facts: ServerFacts) -> Json | None:
    """Return serial and end of the node's certificate; None if they are not known here."""
    try:
        proven = await facts.node_certificate(node.name)
    except StoreError:
        return None
    return {"serial": proven.serial, "ends": as_iso(proven.ends)} if proven else None
