"""Status of the agent as plain values, for ``/status.json``, the page and ``qanat-agent status``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from tunnel_agent.config import SOFTWARE
from tunnel_agent.status.link_history import LinkView, ViewEvent
from tunnel_agent.status.state import AgentState, OpenStream, Phase
from tunnel_core.http.router import Route
from tunnel_core.humanize import as_iso
from tunnel_core.reasons import Reason
from tunnel_core.session.state import StateCategory
from tunnel_core.session.statistics import SessionStatistics
from tunnel_core.telemetry.ops_server import OPERATOR, Answer, OpsCaller, page_route
from tunnel_core.wire.frames import Service

_HTML = "text/html; charset=utf-8"
_JSON = "application/json"
_MAX_LISTED_STREAMS = 200


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """An open stream. ``address`` is empty during the dial."""

    id: str
    target: str
    address: str
    user: str
    entrance: str
    bytes_to_target: int
    bytes_to_user: int


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """The link. ``grace_seconds_left`` is None unless the link is in grace. ``events`` are newest first."""

    state: str
    since: str
    seconds: float
    reason: str
    detail: str
    round_trip_seconds: float | None
    grace_seconds_left: float | None
    events: Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """The node's certificate. ``renews``: when its renewal is due; empty if the agent cannot renew it."""

    serial: str
    ends: str
    renews: str


@dataclass(frozen=True, slots=True)
class Status:
    """Snapshot of the agent. Durations are in seconds, times are ISO 8601 in UTC."""

    node: str
    software: str
    phase: str
    server: str
    servers: Sequence[str]
    uptime_seconds: float
    next_attempt_seconds: float | None
    sessions: int
    session: str
    server_software: str
    round_trip_seconds: float | None
    bytes_from_server: int
    bytes_to_server: int
    stream_count: int
    streams: Sequence[StreamStatus]
    services: Sequence[Mapping[str, str]]
    allow: Sequence[str]
    troubles: Sequence[Mapping[str, str]]
    link: LinkStatus
    certificate: CertificateStatus | None


def status_of(state: AgentState, services: Sequence[Service], allow: Sequence[str]) -> Status:
    """Return the agent's status now, with at most the 200 oldest streams."""
    now, link = state.clock(), state.link
    statistics = link.statistics() if link else SessionStatistics()
    is_waiting = state.phase is Phase.WAITING
    streams = list(link.streams.values()) if link else []
    return Status(
        node=state.node,
        software=SOFTWARE,
        phase=state.phase.value,
        server=state.server,
        servers=state.servers,
        uptime_seconds=max(0.0, now - state.started_at),
        next_attempt_seconds=max(0.0, state.next_attempt_at - now) if is_waiting else None,
        sessions=state.sessions,
        session=link.session_id if link else "",
        server_software=link.software if link else "",
        round_trip_seconds=statistics.round_trip_seconds,
        bytes_from_server=statistics.bytes_in,
        bytes_to_server=statistics.bytes_out,
        stream_count=len(streams),
        streams=[_stream_status(stream) for stream in streams[:_MAX_LISTED_STREAMS]],
        services=[service._asdict() for service in services],
        allow=list(allow),
        troubles=[{"at": _iso(trouble.at), "text": trouble.text} for trouble in reversed(state.troubles)],
        link=_link_status(state.link_view, now),
        certificate=_certificate_status(state),
    )


def _certificate_status(state: AgentState) -> CertificateStatus | None:
    validity, renews_at = state.certificate, state.renews_at
    if validity is None:
        return None
    renews = _iso(renews_at.timestamp()) if renews_at else ""
    return CertificateStatus(validity.serial, _iso(validity.ends.timestamp()), renews)


def _link_status(view: LinkView, now: float) -> LinkStatus:
    in_grace = view.state.category is StateCategory.WAITING
    return LinkStatus(
        state=view.word,
        since=_iso(view.since),
        seconds=max(0.0, now - view.since),
        reason=_word(view.reason),
        detail=view.detail,
        round_trip_seconds=view.round_trip_seconds,
        grace_seconds_left=max(0.0, view.grace_until - now) if in_grace else None,
        events=[_link_event(event) for event in view.events],
    )


def _link_event(event: ViewEvent) -> Mapping[str, str]:
    return {
        "at": _iso(event.at),
        "kind": event.kind,
        "reason": _word(event.reason),
        "detail": event.detail,
    }


def _word(reason: Reason | None) -> str:
    return reason.word if reason else ""


def _stream_status(stream: OpenStream) -> StreamStatus:
    return StreamStatus(
        id=stream.id,
        target=stream.target,
        address=stream.address,
        user=stream.user,
        entrance=stream.entrance,
        bytes_to_target=stream.bytes_in,
        bytes_to_user=stream.bytes_out,
    )


def _iso(unix_seconds: float) -> str:
    return as_iso(datetime.fromtimestamp(unix_seconds, UTC))


def status_routes(
    state: AgentState, services: Sequence[Service], allow: Sequence[str]
) -> list[Route[OpsCaller]]:
    """Return the routes ``/`` and ``/status.json`` for the ops listener."""

    def page() -> Answer:
        # Imported here, because html's table of entities takes memory and most pages are never opened.
        from tunnel_agent.status.page import render

        return Answer(render(as_json(status_of(state, services, allow))).encode(), _HTML)

    def data() -> Answer:
        return Answer(json.dumps(as_json(status_of(state, services, allow)), indent=2).encode(), _JSON)

    return [page_route("/", OPERATOR, page), page_route("/status.json", OPERATOR, data)]


def as_json(status: Status) -> dict[str, Any]:
    """Return ``status`` as the object of ``/status.json``."""
    return asdict(status)
