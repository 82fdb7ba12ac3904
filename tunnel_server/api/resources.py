"""The ``api`` entrance: read-only JSON for the ``qanat`` command and scripts, under ``/api/v1/``."""

from __future__ import annotations

import functools
import platform
import ssl
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from tunnel_core.http.router import GET, Route, RoutedRequest, Section
from tunnel_core.http.server import json_body, respond_json
from tunnel_core.humanize import as_iso
from tunnel_core.version import form
from tunnel_server.access.access import Access
from tunnel_server.api import events as api_events
from tunnel_server.api import policy as api_policy
from tunnel_server.api import status as api_status
from tunnel_server.api.lists import (
    MAX_UNDELIVERED_SHORT,
    SHORT_ROWS_PER_SECOND,
    Answer,
    Listing,
    Page,
    UserTurns,
    parse_page,
)
from tunnel_server.api.server_facts import ServerFacts
from tunnel_server.api.status import NODE_PATH, STATUS_PATH
from tunnel_server.auth.callers import USER, Caller, UserCaller
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.auth.users import User
from tunnel_server.events.event_log import event_as_json
from tunnel_server.events.subscribers import EventSubscribers
from tunnel_server.nodes.registry import Node, Nodes

if TYPE_CHECKING:
    from tunnel_core.session.session import Session
    from tunnel_core.session.statistics import FlightStatistics
    from tunnel_core.streams.tunnel_stream import TunnelStream

ENTRANCE = "api"
ROOT = "/api/"
NODES_PATH = "/api/v1/nodes"
_NODES_LIKE_A_ROW = 8
"""Nodes that the status page counts in the time of one row of a list."""
Json: TypeAlias = dict[str, Any]
MakeAnswer: TypeAlias = Callable[[RoutedRequest, User], Awaitable[Answer]]
Handler: TypeAlias = Callable[[RoutedRequest, UserCaller], Awaitable[None]]
NodeAndSession: TypeAlias = "tuple[Node, Session]"
NodeAndStream: TypeAlias = "tuple[Node, TunnelStream]"


class ApiEntrance:
    """Answer GET requests of users. ``monotonic`` is the clock of the sessions, ``wall`` returns UTC.

    ``access`` selects the nodes that each user may read: those for which a grant has the verb api.
    ``credential_watch`` cancels an answer when the user's certificate is revoked or expires.
    """

    def __init__(
        self,
        nodes: Nodes,
        subscribers: EventSubscribers,
        facts: ServerFacts,
        credential_watch: CredentialWatch,
        access: Access,
        *,
        monotonic: Callable[[], float],
        wall: Callable[[], datetime],
    ) -> None:
        self._facts = facts
        self._nodes = nodes
        self._subscribers = subscribers
        self._credential_watch = credential_watch
        self._access = access
        self._monotonic = monotonic
        self._wall = wall
        self._turns = UserTurns()
        self._short_turns = UserTurns(
            rows_per_second=SHORT_ROWS_PER_SECOND, undelivered=MAX_UNDELIVERED_SHORT
        )
        self._brief = Listing("nodes", nodes.all, _name_of, _brief, is_prompt=True)
        self._all_nodes = Listing("nodes", nodes.all, _name_of, self._node)
        self._all_sessions = Listing("sessions", nodes.attached, _name_of_pair, _session)
        self._all_streams = Listing("streams", self._each_stream, _name_of_pair, self._stream)

    def section(self) -> Section[Caller]:
        """Return the routes of the API."""
        return Section(
            ENTRANCE,
            ROOT,
            USER,
            [
                Route(GET, NODES_PATH, USER, self._list_nodes),
                Route(GET, "/api/v1/sessions", USER, self._in_turn(self._turns, self._sessions_page)),
                Route(GET, "/api/v1/streams", USER, self._in_turn(self._turns, self._streams_page)),
                Route(GET, "/api/v1/version", USER, self._in_turn(self._short_turns, self._version_page)),
                Route(GET, api_events.PATH, USER, self._list_events),
                Route(GET, api_policy.PATH, USER, self._in_turn(self._short_turns, self._policy_page)),
                Route(GET, STATUS_PATH, USER, self._in_turn(self._short_turns, self._status_page)),
                Route(GET, f"{NODE_PATH}*", USER, self._in_turn(self._short_turns, self._node_page)),
            ],
        )

    def _in_turn(self, turns: UserTurns, make: MakeAnswer) -> Handler:
        """Return a handler that builds its answer in a turn of the user."""

        async def handle(routed: RoutedRequest, caller: UserCaller) -> None:
            with self._credential_watch.cancel_when_revoked(caller.user.certificate):
                await _respond(routed, caller, turns, make)

        return handle

    async def _list_nodes(self, routed: RoutedRequest, caller: UserCaller) -> None:
        is_brief = routed.query == "brief=1"
        turns = self._short_turns if is_brief else self._turns
        await self._in_turn(turns, self._brief_page if is_brief else self._nodes_page)(routed, caller)

    async def _list_events(self, routed: RoutedRequest, caller: UserCaller) -> None:
        given = api_events.parse_query(routed.query)
        self._access.may_read(caller.user)
        with self._credential_watch.cancel_when_revoked(caller.user.certificate):
            query = await api_events.wait(self._subscribers, self._nodes, given, caller.user, self._access)

            async def page(_: RoutedRequest, user: User) -> Answer:
                # After the wait, because the user may have lost a grant meanwhile.
                may_read = self._access.may_read(user)
                answer = api_events.answer(self._subscribers.events, query, may_read)
                return _whole(answer, len(answer["events"]))

            await _respond(routed, caller, self._short_turns, page)

    async def _brief_page(self, _: RoutedRequest, user: User) -> Answer:
        return await self._brief.answer(Page(), self._access.may_read(user))

    async def _nodes_page(self, routed: RoutedRequest, user: User) -> Answer:
        return await self._all_nodes.answer(parse_page(routed.query), self._access.may_read(user))

    async def _sessions_page(self, _: RoutedRequest, user: User) -> Answer:
        return await self._all_sessions.answer(Page(), self._access.may_read(user))

    async def _streams_page(self, _: RoutedRequest, user: User) -> Answer:
        return await self._all_streams.answer(Page(), self._access.may_read(user))

    async def _version_page(self, _: RoutedRequest, __: User) -> Answer:
        return _whole(_versions(), 1)

    async def _policy_page(self, routed: RoutedRequest, user: User) -> Answer:
        question = api_policy.parse_question(routed.query)
        return _whole(api_policy.answer(self._access, self._nodes, user, question), 1)

    async def _status_page(self, _: RoutedRequest, user: User) -> Answer:
        page = await api_status.status(self._nodes, self._facts, self._wall(), self._access.may_read(user))
        return _whole(page, self._nodes.count // _NODES_LIKE_A_ROW)

    async def _node_page(self, routed: RoutedRequest, user: User) -> Answer:
        node = api_status.find_node(self._nodes, routed.rest, self._access.may_read(user))
        self._access.require_node(user, node.name)
        page = await self._one_node(node)
        return _whole(page, len(page["streams"]))

    async def _one_node(self, node: Node) -> dict[str, Any]:
        """Return a node with its certificate, its streams and its last events."""
        certificate = await api_status.certificate_of(node, self._facts)
        streams = list(node.session.streams.values()) if node.session else []
        events = self._nodes.events.newest(api_status.EVENTS_OF_NODE, node.name)
        return {
            "node": {**self._node(node), "certificate": certificate},
            "streams": [self._stream((node, stream)) for stream in streams],
            "events": [event_as_json(event) for event in events],
        }

    def _node(self, node: Node) -> Json:
        session, now, seen = node.session, self._wall(), self._last_seen(node)
        return {
            "name": node.name,
            "alias": node.alias,
            "state": node.state,
            "category": node.category.value,
            "duplicate": self._nodes.is_duplicate(node),
            "revoked": node.session is None and self._nodes.is_revoked(node.name),
            "address": node.address,
            "software": node.software,
            "since": as_iso(node.since),
            "seconds": _between(node.since, now),
            "session_since": as_iso(node.session_since) if session else None,
            "last_seen": as_iso(seen) if seen else None,
            "silent_seconds": _between(seen, now) if seen else None,
            "last_reason": node.last_reason.word if node.last_reason else None,
            "services": _services(session),
            **_traffic(session),
        }

    def _last_seen(self, node: Node) -> datetime | None:
        """Return the time of the last packet from the node's agent, None if no agent ever attached."""
        session = node.session
        if session is None or session.lost is not None or session.ended is not None:
            return node.last_seen_at
        return self._wall() - timedelta(seconds=self._monotonic() - session.statistics().last_received_at)

    def _each_stream(self) -> Iterator[NodeAndStream]:
        for node, session in self._nodes.attached():
            for stream in list(session.streams.values()):
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


async def _respond(routed: RoutedRequest, caller: UserCaller, turns: UserTurns, make: MakeAnswer) -> None:
    async with turns.turn(caller.user.name) as turn:
        answer = await make(routed, caller.user)
        turn.made(answer.rows)
        await respond_json(routed.http, answer.body)


def _whole(page: Json, rows: int) -> Answer:
    return Answer(json_body(page), rows)


def _name_of(node: Node) -> str:
    return node.name


def _name_of_pair(pair: tuple[Node, object]) -> str:
    return pair[0].name


def _brief(node: Node) -> Json:
    """Return the few fields that shell completion needs, because each TAB sends a request."""
    return {"name": node.name, "alias": node.alias, "state": node.state, "category": node.category.value}


def _session(pair: NodeAndSession) -> Json:
    node, session = pair
    return {
        "id": session.session_id,
        "node": node.name,
        "address": session.peer_address,
        "software": session.software,
        "since": as_iso(node.session_since),
        **_traffic(session),
    }


def _between(earlier: datetime, later: datetime) -> float:
    """Return the seconds between two times: at least 0, even if the clock was set back."""
    return max(0.0, round((later - earlier).total_seconds(), 1))


def _traffic(session: Session | None) -> Json:
    if session is None:
        return {"round_trip_ms": None, "streams": 0, "bytes_in": 0, "bytes_out": 0, "flight": None}
    figures = session.statistics()
    seconds = figures.round_trip_seconds
    return {
        "round_trip_ms": None if seconds is None else round(seconds * 1000, 3),
        "streams": figures.open_streams,
        "bytes_in": figures.bytes_in,
        "bytes_out": figures.bytes_out,
        "flight": _flight(figures.flight),
    }


def _flight(flight: FlightStatistics) -> Json:
    """Return the congestion state towards the agent. Rate and round trip are 0 before bulk data was sent."""
    return {
        "bytes": flight.in_flight,
        "limit": flight.limit,
        "bytes_per_second": round(flight.rate_bytes_per_second),
        "min_round_trip_ms": round(flight.min_round_trip_seconds * 1000, 3),
        "competing": flight.competing,
    }


def _services(session: Session | None) -> list[Json]:
    return [service._asdict() for service in session.services] if session else []


def _versions() -> Json:
    return {
        "version": _installed("qanat"),
        "form": form(),
        "python": platform.python_version(),
        "grpc": _installed("grpcio"),
        "tls": ssl.OPENSSL_VERSION,
    }


@functools.cache  # each look-up reads files, and leaves reference cycles of Python's own
def _installed(distribution: str) -> str:
    from importlib import metadata  # late, because it costs 1 MB and few servers are asked

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
