"""Page of ``qanat status``: the server, the user's certificate, and warnings with cures. No I/O.

An older server has no status page. Then this page comes from its other pages, with fewer facts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from certs.validity import ValidityPeriod, is_late
from tunnel_client.node_facts import Item, category_of, items_of, state_of, text_of
from tunnel_core.cli.command_line import printable
from tunnel_core.cli.tables import facts_of, flowed
from tunnel_core.humanize import age_of, as_iso, as_minute, minute_of, moment_of, parse_moment
from tunnel_core.session.state import GONE, StateCategory

_MAX_WARNINGS = 20


@dataclass(frozen=True, slots=True)
class UserCertificate:
    """Certificate of the user of this command."""

    name: str
    validity: ValidityPeriod


def from_pages(version: Item, nodes: Item, streams: Item) -> dict[str, Any]:
    """Return the part of ``/api/v1/status`` that an older server's pages contain."""
    known = items_of(nodes, "nodes")
    return {
        "version": version.get("version"),
        "nodes": dict(Counter(text_of(node, "state") for node in known)),
        "streams": len(items_of(streams, "streams")),
        "warnings": list(_of_nodes(known)),
    }


def _of_nodes(nodes: list[Item]) -> Iterator[dict[str, str]]:
    for node in nodes:
        name, category = text_of(node, "name"), category_of(node)
        if node.get("duplicate"):
            cure = "give each agent its own bundle: qanat-server issue node NAME"
            yield {"detail": f"two agents attach as node {name}", "cure": cure}
        if category in (StateCategory.WAITING, StateCategory.ABSENT) and not node.get("revoked"):
            detail = f"node {name} is not reachable: {state_of(node)}"
            yield {"detail": detail, "cure": "on the node: qanat-agent status, qanat-agent check"}


def page_of(status: Item, own: UserCertificate | None, client_version: str, now: datetime) -> dict[str, Any]:
    """Return the whole page as JSON: ``server``, ``client`` and ``warnings``."""
    client: dict[str, Any] = {"version": client_version, "certificate": None}
    warnings = [
        {"detail": text_of(warning, "detail"), "cure": text_of(warning, "cure")}
        for warning in items_of(status, "warnings")
    ]
    if own is not None:
        ends = as_iso(own.validity.ends)
        client["certificate"] = {"name": own.name, "serial": own.validity.serial, "ends": ends}
        warnings += _of_own(own, now)
    server = {key: value for key, value in status.items() if key != "warnings"}
    return {"server": server, "client": client, "warnings": warnings}


def _of_own(own: UserCertificate, now: datetime) -> Iterator[dict[str, str]]:
    validity = own.validity
    if not is_late(validity.issued, validity.ends, now):
        return
    verb = "ended" if now >= validity.ends else "ends"
    detail = f"your certificate ({own.name}) {verb} at {as_minute(validity.ends)}"
    yield {"detail": detail, "cure": f"on the server: qanat-server issue user {own.name}"}


def lines_of(page: Item, server_name: str, now: datetime, width: int | None = None) -> list[str]:
    """Return the page as lines of at most ``width`` cells. ``server_name`` has the dialled address."""
    server = page["server"]
    facts = [
        ("server", ", ".join(filter(None, [text_of(server, "version"), _running(server, now), server_name]))),
        ("addresses", _addresses(server.get("addresses"))),
        ("nodes", _nodes(server.get("nodes"), server.get("nodes_gone"))),
        ("streams", text_of(server, "streams")),
        ("certificate", _until(server.get("certificate"), "of the server")),
        ("yours", _until(page["client"]["certificate"], f"of client version {page['client']['version']}")),
    ]
    return [*facts_of(facts, 13, width), "", *_warnings(page["warnings"], width)]


def _running(server: Item, now: datetime) -> str:
    started = moment_of(server.get("started"))
    return f"running since {started} ({age_of(server.get('started'), now)})" if started else ""


def _addresses(addresses: object) -> str:
    if not isinstance(addresses, Mapping):
        return ""
    return ", ".join(
        f"{name} {' '.join(map(str, listed))}"
        for name, listed in addresses.items()
        if isinstance(listed, list) and listed
    )


def _nodes(counts: object, kinds_of_gone: object) -> str:
    """Return ``5: 2 attached, 3 gone (1 never attached)``, without the brackets for an older server."""
    if not isinstance(counts, Mapping):
        return ""
    numbers = _numbers(counts)
    each = ", ".join(f"{number} {state}" for state, number in numbers.items())
    kinds = ", ".join(
        f"{number} {kind.replace('_', ' ')}" for kind, number in _numbers(kinds_of_gone).items()
    )
    if kinds:
        each = each.replace(f" {GONE}", f" {GONE} ({kinds})")
    return f"{sum(numbers.values())}: {each}" if numbers else "none"


def _numbers(counts: object) -> dict[str, int]:
    if not isinstance(counts, Mapping):
        return {}
    return {str(word): number for word, number in counts.items() if isinstance(number, int) and number}


def _until(certificate: object, what: str) -> str:
    if not isinstance(certificate, Mapping) or parse_moment(certificate.get("ends")) is None:
        return ""
    name = text_of(certificate, "name")
    until = f"until {minute_of(certificate['ends'])}"
    return f"user {name}, {until}" if name else f"{until}, {what}"


def _warnings(warnings: list[Mapping[str, str]], width: int | None) -> list[str]:
    if not warnings:
        return ["Nothing needs attention."]
    lines = ["Needs attention:"]
    for warning in warnings[:_MAX_WARNINGS]:
        lines += flowed(printable(warning["detail"]), 2, width)
        lines += flowed(printable(warning["cure"]), 6, width)
    more = len(warnings) - _MAX_WARNINGS
    return [*lines, f"  and {more} more: qanat status --json"] if more > 0 else lines
