"""The ``api`` entrance: read-only JSON for the ``qanat`` command and scripts, under ``/api/v1/``."""

from __future__ import annotations

import json
import platform
import ssl
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeAlias

import h11

from tunnel_core.http import HttpConnection
from tunnel_core.humanize import as_iso
from tunnel_core.reasons import Reason, Refused
from tunnel_server.entrances import api_events, api_status
from tunnel_server.entrances.api_lists import (
    MAX_UNDELIVERED_SHORT,
    SHORT_ROWS_PER_SECOND,
    Answer,
    Listing,
    Page,
    UserTurns,
    parse_page,
)
from tunnel_server.entrances.api_status import NODE_PATH, STATUS_PATH
from tunnel_server.events import event_as_json
from tunnel_server.followers import Followers
from tunnel_server.nodes import Node, Nodes
from tunnel_server.server_facts import ServerFacts

if TYPE_CHECKING:
    from tunnel_core.link import Link
    from tunnel_core.link_facts import FlightStatistics
    from tunnel_core.stream import Stream

ENTRANCE = "api"
ROOT = "/api/"
NODES_PATH = "/api/v1/nodes"
_VERSION_PATH = "/api/v1/version"
_OTHER_PATHS = {_VERSION_PATH, api_events.PATH}
_NODES_LIKE_A_ROW = 8
"""Nodes that a page of the whole server looks at in the time of one row of a list."""
Json: TypeAlias = dict[str, Any]
NodeAndLink: TypeAlias = "tuple[Node, Link]"
NodeAndStream: TypeAlias = "tuple[Node, Stream]"


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
        self._turns = UserTurns()
        self._short_turns = UserTurns(
            rows_per_second=SHORT_ROWS_PER_SECOND, undelivered=MAX_UNDELIVERED_SHORT
        )
        self._brief = Listing("nodes", nodes.all, _name_of, _brief, is_prompt=True)
        self._lists: dict[str, Listing[Node] | Listing[NodeAndLink] | Listing[NodeAndStream]] = {
            NODES_PATH: Listing("nodes", nodes.all, _name_of, self._node),
            "/api/v1/sessions": Listing("sessions", nodes.attached, _name_of_pair, _session),
            "/api/v1/streams": Listing("streams", self._all_streams, _name_of_pair, self._stream),
        }

    async def handle(self, http: HttpConnection, request: h11.Request, user: str = "") -> None:
        """Answers one request of ``user``, or raises ``Refused``."""
        path, _, query = request.target.decode("ascii").partition("?")
        if not self._has(path):
            known = ", ".join([*self._lists, _VERSION_PATH, api_events.PATH, f"{NODE_PATH}NAME"])
            raise Refused(Reason.NOT_FOUND, f"there is nothing at {path[:200]}; there is {known}")
        if request.method != b"GET":
            raise Refused(Reason.METHOD_NOT_ALLOWED, "the API is read-only: use GET")
        question = api_events.parse_question(query) if path == api_events.PATH else None
        if question is not None:
            question = await api_events.wait(self._followers, self._nodes, question, user)
        is_list = path in self._lists and not _is_brief(path, query)
        async with (self._turns if is_list else self._short_turns).turn(user) as turn:
            answer = await self._answer(path, query, question)
            turn.made(answer.rows)
            headers = [("content-type", "application/json"), ("cache-control", "no-store")]
            await http.respond(200, "OK", headers, answer.body)

    def _has(self, path: str) -> bool:
        if path == STATUS_PATH:
            return self._facts is not None
        return path in self._lists or path in _OTHER_PATHS or path.startswith(NODE_PATH)

    async def _answer(self, path: str, query: str, question: api_events.Question | None) -> Answer:
        if _is_brief(path, query):
            return await self._brief.answer(Page())
        if path in self._lists:
            return await self._lists[path].answer(parse_page(query) if path == NODES_PATH else Page())
        if question is not None:
            found = api_events.answer(self._followers.events, question)
            return _whole(found, len(found["events"]))
        if path == STATUS_PATH and self._facts is not None:
            status = await api_status.status(self._nodes, self._facts, self._wall())
            return _whole(status, self._nodes.count // _NODES_LIKE_A_ROW)
        if path.startswith(NODE_PATH):
            one = await self._one_node(api_status.find_node(self._nodes, path))
            return _whole(one, len(one["streams"]))
        return _whole(_versions(), 1)

    async def _one_node(self, node: Node) -> dict[str, Any]:
        """Everything on one node: itself, its streams, and its last events."""
        certificate = await api_status.certificate_of(node, self._facts)
        streams = list(node.link.streams.values()) if node.link else []
        events = self._nodes.events.newest(api_status.EVENTS_OF_NODE, node.name)
        return {
            "node": {**self._node(node), "certificate": certificate},
            "streams": [self._stream((node, stream)) for stream in streams],
            "events": [event_as_json(event) for event in events],
        }

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
        return self._wall() - timedelta(seconds=self._monotonic() - link.statistics().heard_at)

    def _all_streams(self) -> Iterator[NodeAndStream]:
        for node, link in self._nodes.attached():
            for stream in list(link.streams.values()):
                yield node, stream

    def _stream(self, pair: NodeAndStream) -> Json:
        node, stream = pair
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


def _is_brief(path: str, query: str) -> bool:
    return path == NODES_PATH and query == "brief=1"


def _whole(page: Json, rows: int) -> Answer:
    return Answer(json.dumps(page, separators=(",", ":")).encode() + b"\n", rows)


def _name_of(node: Node) -> str:
    return node.name


def _name_of_pair(pair: tuple[Node, object]) -> str:
    return pair[0].name


def _brief(node: Node) -> Json:
    """As little as completion in a shell needs, which asks with each TAB."""
    return {"name": node.name, "alias": node.alias, "state": node.state, "category": node.category.value}


def _session(pair: NodeAndLink) -> Json:
    node, link = pair
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
    figures = link.statistics()
    seconds = figures.round_trip_seconds
    return {
        "round_trip_ms": None if seconds is None else round(seconds * 1000, 3),
        "streams": figures.open_streams,
        "bytes_in": figures.bytes_in,
        "bytes_out": figures.bytes_out,
        "flight": _flight(figures.flight),
    }


def _flight(flight: FlightStatistics) -> Json:
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
