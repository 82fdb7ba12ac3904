"""The page of events: lists, filters, long polls."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from tests.server.api.test_resources import get
from tests.support.fakes.edge import TRUST_DOMAIN, Edge, echo, now, open_edge
from tests.support.fakes.granting import open_access
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_core.telemetry.counters import Counters
from tunnel_server.api import events as api_events
from tunnel_server.api.events import MAX_LISTED, EventsQuery, parse_query
from tunnel_server.auth.users import User
from tunnel_server.events.event_log import EventKind, Events
from tunnel_server.events.subscribers import EventSubscribers
from tunnel_server.nodes.registry import Nodes

PATH = api_events.PATH


def kinds(body: Any) -> list[tuple[str, str]]:
    return [(event["node"], event["kind"]) for event in body["events"]]


def filled(edge: Edge) -> Edge:
    edge.subscribers.events.add(EventKind.ATTACHED, "edge1", "facade00")
    edge.subscribers.events.add(EventKind.ATTACHED, "edge2", "facade00")
    edge.subscribers.events.add(
        EventKind.LOST, "edge1", "facade00", Reason.PING_TIMEOUT, "no packet received for 30 s"
    )
    return edge


async def test_events_are_listed_whole() -> None:
    async with open_edge() as edge:
        status, body = await get(filled(edge), PATH)
        assert (status, len(body["events"]), body["gap"]) == (200, 3, False)
        lost = body["events"][2]
        assert lost.pop("at").endswith("Z")
        assert lost.pop("id") == body["last"] == edge.subscribers.events.last_id
        assert lost == {
            "kind": "lost",
            "node": "edge1",
            "session": "facade00",
            "reason": "ping_timeout",
            "detail": "no packet received for 30 s",
        }


async def test_of_one_node_by_name_or_alias_after_an_id() -> None:
    async with open_edge() as edge:
        edge.attach("a.very.dotted.name", echo)
        alias = edge.nodes.all()[0].alias
        filled(edge).subscribers.events.add(EventKind.LOST, "a.very.dotted.name", "facade00")
        _, body = await get(edge, f"{PATH}?node={alias}")
        assert kinds(body) == [("a.very.dotted.name", "lost")]
        _, body = await get(edge, f"{PATH}?node=edge1&after={edge.subscribers.events.last_id - 3}")
        assert kinds(body) == [("edge1", "lost")]
        _, body = await get(edge, f"{PATH}?node=never-seen")
        assert (body["events"], body["last"]) == ([], edge.subscribers.events.last_id)


async def test_a_subscriber_is_informed_at_once() -> None:
    async with open_edge() as edge:
        filled(edge)
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                _, body = await get(edge, f"{PATH}?wait=20")
                assert kinds(body) == [("edge3", "resumed")]

            nursery.start_soon(follow)
            await trio.sleep(0.1)
            edge.subscribers.events.add(EventKind.RESUMED, "edge3", "facade00")


async def test_a_quiet_node_is_an_empty_answer() -> None:
    async with open_edge() as edge:
        _, body = await get(filled(edge), f"{PATH}?after={edge.subscribers.events.last_id}&wait=0.05")
        assert (body["events"], body["last"], body["gap"]) == ([], edge.subscribers.events.last_id, False)


async def test_a_long_poll_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    subscribers = EventSubscribers(Events(now), Counters())
    with trio.fail_after(31):
        await api_events.wait(
            subscribers,
            Nodes(trio.current_time, now, lambda name: False),
            parse_query("wait=9999"),
            User("alice", Role.USER, TRUST_DOMAIN),
            open_access(TRUST_DOMAIN),
        )
    assert trio.current_time() >= 30 - 1e-6


async def test_more_than_fits_one_answer_is_read_in_several() -> None:
    events = Events(now)
    start = events.last_id
    for number in range(MAX_LISTED + 5):
        events.add(EventKind.ATTACHED, f"edge{number}", "facade00")
    first = api_events.answer(events, EventsQuery(after=start), None)
    assert first["last"] == start + MAX_LISTED
    rest = api_events.answer(events, EventsQuery(after=start + MAX_LISTED), None)
    assert rest["last"] == events.last_id
    assert json.dumps(rest).count('"kind"') == 5
    newest = api_events.answer(events, EventsQuery(), None)
    assert newest["last"] == events.last_id


async def test_a_gap_is_reported() -> None:
    async with open_edge() as edge:
        _, body = await get(filled(edge), f"{PATH}?after=7")
        assert (len(body["events"]), body["gap"]) == (3, True)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("aftr=1", "'aftr' is not a parameter"),
        ("after=-1", "after is not"),
        ("after=1e5", "after is not"),
        ("after=9999999999999999999", "after is not"),
        ("after=%D9%A1", "after is not"),
        ("wait=soon", "wait is not"),
        ("wait=nan", "wait is not"),
        ("wait=-1", "wait is not"),
        ("node=a&node=b", "comes twice"),
        ("&".join(f"p{i}=1" for i in range(20)), "too many parameters"),
    ],
)
def test_invalid_queries_are_refused(query: str, expected: str) -> None:
    with pytest.raises(Refused, match=expected) as caught:
        parse_query(query)
    assert caught.value.reason is Reason.BAD_REQUEST


def test_an_empty_parameter_is_ignored() -> None:
    assert parse_query("node=&after=&wait=") == parse_query("") == EventsQuery()
    assert parse_query("node=a%20b&after=0&wait=inf") == EventsQuery("a b", 0, 30.0)
