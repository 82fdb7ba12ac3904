"""The status page: true values, escaped text, no script, and the same facts as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import cast

import h11
import pytest

from certs.validity import ValidityPeriod
from tests.support.fakes import memory_link
from tunnel_agent.status.page import render
from tunnel_agent.status.report import as_json, status_of, status_routes
from tunnel_agent.status.state import AgentState, OpenStream, Phase
from tunnel_core.http.router import Route, RoutedRequest
from tunnel_core.http.server import Headers, HttpConnection
from tunnel_core.limits import Limits
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason
from tunnel_core.session.state import Loss, SessionState
from tunnel_core.session.statistics import SessionStatistics
from tunnel_core.telemetry.ops_server import OPERATOR, OpsCaller
from tunnel_core.wire.frames import Service, Welcome

EVIL = "<script>alert('x')</script>\"&"


@dataclass(frozen=True)
class FakeStream:
    id: str = "0badcafe-1"
    target: str = "web"
    user: str = "kim"
    entrance: str = "web"
    address: str = "127.0.0.1:1880"
    bytes_in: int = 2048
    bytes_out: int = 5 * 1024 * 1024


@dataclass
class FakeLink:
    session_id: str = "0badcafe"
    software: str = "qanat-server/9.9"
    round_trip_seconds: float | None = 0.0234
    state: SessionState = SessionState.ATTACHED
    lost: Loss | None = None
    welcome: Welcome = field(default_factory=lambda: memory_link.welcome(Limits(), 120_000))
    bytes_in: int = 10
    bytes_out: int = 20
    streams: Mapping[int, OpenStream] = field(default_factory=dict)
    mux_streams: tuple[StreamState, ...] = ()

    def statistics(self) -> SessionStatistics:
        return SessionStatistics(
            round_trip_seconds=self.round_trip_seconds, bytes_in=self.bytes_in, bytes_out=self.bytes_out
        )

    def drain(self, deadline_seconds: float) -> None:
        raise AssertionError

    def end(self, reason: Reason, detail: str = "") -> None:
        raise AssertionError

    async def wait_ended(self) -> tuple[Reason, str]:
        raise AssertionError


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def state_of(clock: Clock, link: FakeLink | None = None) -> AgentState:
    state = AgentState("edge1", ("a:7001", "b:7001"), clock)
    state.connecting("a:7001")
    if link is not None:
        state.attached(link)
    return state


SERVICES = (Service("web", "http", "127.0.0.1:1880"),)


def page_of(state: AgentState, allow: tuple[str, ...] = ()) -> str:
    return render(as_json(status_of(state, SERVICES, allow)))


def test_an_attached_agent_shows_its_link_streams_and_services() -> None:
    clock = Clock()
    state = state_of(clock, FakeLink(streams={1: FakeStream()}))
    clock.now += 125
    page = page_of(state, ("10.0.0.0/8:80",))
    for text in (
        "edge1",
        "attached",
        "a:7001",
        "2 min 5 s",
        "23 ms",
        "0badcafe-1",
        "kim",
        "2.0 KiB",
        "5.0 MiB",
    ):
        assert text in page
    assert "10.0.0.0/8:80" in page
    assert "127.0.0.1:1880" in page


def test_a_waiting_agent_shows_its_next_attempt_and_the_cause() -> None:
    state = state_of(Clock())
    state.trouble("cannot attach to a:7001: connection refused")
    state.waiting(12.0)
    page = page_of(state)
    assert "the next attempt is in 12 s" in page
    assert "connection refused" in page


def test_an_agent_that_stops_is_shown_as_stopping_until_the_end() -> None:
    state = state_of(Clock(), FakeLink())
    state.stopping()
    state.connecting("a:7001")
    assert state.phase is Phase.STOPPING
    assert "stopping: streams may finish" in page_of(state)


def test_nothing_from_outside_becomes_markup() -> None:
    stream = FakeStream(EVIL, EVIL, EVIL, EVIL, EVIL)
    state = state_of(Clock(), FakeLink(EVIL, EVIL, streams={1: stream}))
    state.node = state.server = EVIL
    state.trouble(EVIL)
    services = (Service(EVIL, EVIL, EVIL),)
    page = render(as_json(status_of(state, services, (EVIL,))))
    assert "<script" not in page
    assert EVIL not in page
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&quot;&amp;") >= 12


@pytest.mark.parametrize("link", [None, FakeLink(), FakeLink(streams={1: FakeStream()})])
def test_the_page_needs_no_script_and_no_other_file(link: FakeLink | None) -> None:
    page = page_of(state_of(Clock(), link))
    assert "default-src 'none'" in page
    assert '<meta http-equiv="refresh"' in page
    assert not re.search(r"(src|href)=\"(?!data:|status\.json|metrics)", page)


def test_long_lists_are_cut_and_counted() -> None:
    streams = {n: replace(FakeStream(), id=f"s-{n}") for n in range(250)}
    status = status_of(state_of(Clock(), FakeLink(streams=streams)), SERVICES, ())
    assert (status.stream_count, len(status.streams)) == (250, 200)
    assert "and 50 more" in render(as_json(status))


class FakeConnection:
    """The connection of a client that keeps the answer."""

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self.content_type, self.body = dict(headers)["content-type"], body


async def shown(route: Route[OpsCaller]) -> tuple[str, bytes]:
    """The content type and the body of a page."""
    connection = FakeConnection()
    request = h11.Request(method="GET", target=route.path, headers=[("host", "x")])
    await route.answer(RoutedRequest(cast(HttpConnection, connection), request, "", ""), lambda _: None)
    return connection.content_type, connection.body


async def test_the_routes_give_page_and_json() -> None:
    state = state_of(Clock(), FakeLink())
    routes = {route.path: route for route in status_routes(state, SERVICES, ("localhost:80",))}
    assert [route.who_may for route in routes.values()] == [OPERATOR, OPERATOR]
    assert (await shown(routes["/"]))[0].startswith("text/html")
    as_shown = json.loads((await shown(routes["/status.json"]))[1])
    assert (as_shown["phase"], as_shown["link"]["state"]) == ("in_session", "attached")
    assert as_shown["round_trip_seconds"] == 0.0234
    assert as_shown["allow"] == ["localhost:80"]
    assert as_shown["services"] == [{"name": "web", "protocol": "http", "target": "127.0.0.1:1880"}]
    assert as_shown["link"]["since"] == "2023-11-14T22:13:20Z"


def test_the_certificate_is_shown_with_its_end_and_its_renewal() -> None:
    clock = Clock()
    state = state_of(clock, FakeLink())
    assert as_json(status_of(state, SERVICES, ()))["certificate"] is None
    begins = datetime.fromtimestamp(clock.now, UTC)
    life = ValidityPeriod("0a1b", begins, begins + timedelta(days=30, hours=1))
    state.certificate, state.renews_at = life, life.renewal(0.5)
    as_shown = as_json(status_of(state, SERVICES, ()))["certificate"]
    assert as_shown == {"serial": "0a1b", "ends": "2023-12-14T23:13:20Z", "renews": "2023-12-04T23:13:20Z"}
    assert "certificate until 2023-12-14 23:13Z, renews on 2023-12-04 23:13Z" in page_of(state)
    state.renews_at = None
    assert "renews on" not in page_of(state)
