"""The ``api`` entrance: read-only JSON for the ``qanat`` command and scripts, under ``/api/v1/``."""

from __future__ import annotations

import json
import platform
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from importlib import metadata
from typing import TYPE_CHECKING, TypeAlias

import h11

from tunnel_core.http import HttpConnection
from tunnel_core.humanize import as_iso
from tunnel_core.reasons import Reason, Refused
from tunnel_server.entrances import api_events, api_status
from tunnel_server.entrances.api_status import NODE_PATH, STATUS_PATH
from tunnel_server.followers import Followers
from tunnel_server.nodes import Node, Nodes
from tunnel_server.server_facts import ServerFacts

if TYPE_CHECKING:
    from tunnel_core.flight import Flight
    from tunnel_core.link import Link
    from tunnel_core.stream import Stream

ENTRANCE = "api"
ROOT = "/api/"
NODES_PATH = "/api/v1/nodes"
Json: TypeAlias = dict[str, object]


class ApiEntrance:
    """Answers GET requests. ``monotonic`` is the clock of the links, ``wall`` gives UTC.

    Without ``facts`` there is no page on the server itself.
    """

    def __init__(
        self,
        nodes: Nodes,
        followers: Followers,
        monotonic: Callable[[], float],
        wall: Callable[[], datetime],
        facts: ServerFacts | None = None,
    ) -> None:
        self._facts = facts
        self._nodes = nodes
        self._followers = followers
        self._monotonic = monotonic
        self._wall = wall
        self._pages: dict[str, Callable[[], Json]] = {
            NODES_PATH: self._all_nodes,
            "/api/v1/sessions": self._all_sessions,
            "/api/v1/streams": self._all_streams,
            "/api/v1/version": _versions,
        }

    async def handle(self, http: HttpConnection, request: h11.Request, user: str = "") -> None:
        """Answers one request of ``user``, or raises ``Refused``."""
        path, _, query = request.target.decode("ascii").partition("?")
        if not self._has(path):
            known = ", ".join([*self._pages, api_events.PATH, f"{NODE_PATH}NAME"])
            raise Refused(Reason.NOT_FOUND, f"there is nothing at {path[:200]}; there is {known}")
        if request.method != b"GET":
            raise Refused(Reason.METHOD_NOT_ALLOWED, "the API is read-only: use GET")
        body = json.dumps(await self._answer(path, query, user), separators=(",", ":")).encode() + b"\n"
        headers = [("content-type", "application/json"), ("cache-control", "no-store")]
        await http.respond(200, "OK", headers, body)

    def _has(self, path: str) -> bool:
        if path == STATUS_PATH:
            return self._facts is not None
        return path in self._pages or path == api_events.PATH or path.startswith(NODE_PATH)

    async def _answer(self, path: str, query: str, user: str) -> Json:
        if path == api_events.PATH:
            question = api_events.parse_question(query)
            return await api_events.answer(self._followers, self._nodes, question, user)
        if path == STATUS_PATH and self._facts is not None:
            return await api_status.status(self._nodes, self._facts, self._wall())
        if path.startswith(NODE_PATH):
            return await self._one_node(api_status.find_node(self._nodes, path))
        if path == NODES_PATH and query == "brief=1":
            return {"nodes": [_brief(node) for node in self._nodes.all()]}
        return self._pages[path]()

    async def _one_node(self, node: Node) -> Json:
        """Everything on one node: itself, its streams, and its last events."""
        certificate = await api_status.certificate_of(node, self._facts)
        streams = node.link.streams.values() if node.link else ()
        events = self._nodes.events.newest(api_status.EVENTS_OF_NODE, node.name)
        return {
            "node": {**self._node(node), "certificate": certificate},
            "streams": [self._stream(node, stream) for stream in streams],
            "events": [api_events.event_as_json(event) for event in events],
        }

    def _all_nodes(self) -> Json:
        return {"nodes": [self._node(node) for node in self._nodes.all()]}

    def _node(self, node: Node) -> Json:
        link, now, seen = node.link, self._wall(), self._last_seen(node)
        return {
            "name": node.name,
            "alias": node.alias,
            "state": node.state,
            "category": node.category.value,
            "duplicate": self._nodes.is_duplicate(node),
            "revoked": node.link is None and self._nodes.is_revoked(node.name),
            "address": node.address,
            "software": node.software,
            "since": as_iso(node.since),
            "seconds": _between(node.since, now),
            "session_since": as_iso(node.session_since) if link else None,
            "last_seen": as_iso(seen) if seen else None,
            "silent_seconds": _between(seen, now) if seen else None,
            "last_reason": node.last_reason.word if node.last_reason else None,
            "services": _services(link),
            **_traffic(link),
        }

    def _last_seen(self, node: Node) -> datetime | None:
        """None if no agent of the node ever attached."""
        link = node.link
        if link is None or link.lost is not None or link.ended is not None:
            return node.last_seen_at
        return self._wall() - timedelta(seconds=self._monotonic() - link.heard_at)

    def _all_sessions(self) -> Json:
        return {"sessions": [_session(node, link) for node, link in self._nodes.attached()]}

    def _all_streams(self) -> Json:
        return {
            "streams": [
                self._stream(node, stream)
                for node, link in self._nodes.attached()
                for stream in link.streams.values()
            ]
        }

    def _stream(self, node: Node, stream: Stream) -> Json:
        return {
            "id": stream.id,
            "node": node.name,
            "target": stream.target,
            "user": stream.user,
            "entrance": stream.entrance,
            "age_seconds": round(self._monotonic() - stream.opened_at, 3),
            "bytes_in": stream.bytes_in,
            "bytes_out": stream.bytes_out,
        }


def _brief(node: Node) -> Json:
    """As little as completion in a shell needs, which asks with each TAB."""
    return {"name": node.name, "alias": node.alias, "state": node.state, "category": node.category.value}


def _session(node: Node, link: Link) -> Json:
    return {
        "id": link.session_id,
        "node": node.name,
        "address": link.peer_address,
        "software": link.software,
        "since": as_iso(node.session_since),
        **_traffic(link),
    }


def _between(earlier: datetime, later: datetime) -> float:
    """In seconds; not below 0 when the clock was set back."""
    return max(0.0, round((later - earlier).total_seconds(), 1))


def _traffic(link: Link | None) -> Json:
    if link is None:
        return {"round_trip_ms": None, "streams": 0, "bytes_in": 0, "bytes_out": 0, "flight": None}
    seconds = link.round_trip_seconds
    return {
        "round_trip_ms": None if seconds is None else round(seconds * 1000, 3),
        "streams": len(link.streams),
        "bytes_in": link.bytes_in,
        "bytes_out": link.bytes_out,
        "flight": _flight(link.flight),
    }


def _flight(flight: Flight) -> Json:
    """Of what goes to the agent; what the rate and the round trip are is known once bulk has moved."""
    return {
        "bytes": flight.in_flight,
        "limit": flight.limit,
        "bytes_per_second": round(flight.rate_bytes_per_second),
        "min_round_trip_ms": round(flight.min_round_trip_seconds * 1000, 3),
        "competing": flight.competing,
    }


def _services(link: Link | None) -> list[Json]:
    return [service._asdict() for service in link.services] if link else []


def _versions() -> Json:
    return {
        "version": _installed("qanat"),
        "python": platform.python_version(),
        "grpc": _installed("grpcio"),
        "tls": ssl.OPENSSL_VERSION,
    }


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
