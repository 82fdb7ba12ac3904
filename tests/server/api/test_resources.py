"""The read-only API."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.fakes.edge import Edge, echo, open_edge, receive_all
from tests.support.fakes.granting import grant
from tunnel_core.identity import Role
from tunnel_core.names import Target
from tunnel_core.reasons import Reason
from tunnel_core.wire.frames import Service
from tunnel_server.auth.access_rules import AccessChange
from tunnel_server.auth.users import User
from tunnel_server.events.event_log import EventKind
from tunnel_server.listeners.listener import AcceptedConnection


def a_user(accepted: AcceptedConnection) -> User:
    return User("ops", Role.USER, "test.internal")


async def get(edge: Edge, path: str, method: str = "GET") -> tuple[int, Any]:
    https_entrance = edge.https_entrance(a_user, edge.api(), entrance="api")
    stream = await edge.dial(await edge.listen("api", https_entrance.serve))
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
    await stream.send_all(head.encode())
    answer = await receive_all(stream)
    head_bytes, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head_bytes.lower()
    return int(head_bytes[9:12]), json.loads(body)


async def test_nodes_attached_and_gone() -> None:
    async with open_edge() as edge:
        edge.attach("edge1", echo, Service("red", "http", "127.0.0.1:1880"))
        edge.nodes.detach(edge.attach("edge2", echo), Reason.PING_TIMEOUT)
        status, body = await get(edge, "/api/v1/nodes?all=1")
        assert status == 200
        first, second = body["nodes"]
        assert first.pop("since") == first.pop("session_since") <= first.pop("last_seen")
        assert first.pop("seconds") >= first.pop("silent_seconds") >= 0
        assert first == {
            "name": "edge1",
            "alias": "edge1",
            "state": "attached",
            "category": "reachable",
            "duplicate": False,
            "revoked": False,
            "address": "192.0.2.1:4711",
            "software": "qanat-agent/0.1.0",
            "round_trip_ms": 12.3,
            "streams": 0,
            "services": [{"name": "red", "protocol": "http", "target": "127.0.0.1:1880"}],
            "bytes_in": 0,
            "bytes_out": 0,
            "flight": {
                "bytes": 0,
                "limit": 8192,
                "bytes_per_second": 0,
                "min_round_trip_ms": 0.0,
                "competing": False,
            },
            "last_reason": None,
        }
        assert (second["name"], second["state"], second["last_reason"]) == ("edge2", "gone", "ping_timeout")
        assert second["since"] == second["last_seen"]
        assert second["session_since"] is None
        assert second["services"] == []


async def test_sessions_and_streams() -> None:
    async with open_edge() as edge:
        session = edge.attach("edge1", echo)
        session.open(Target.parse("localhost:22"), user="ops", entrance="tcp")
        _, sessions = await get(edge, "/api/v1/sessions")
        assert [(s["id"], s["node"], s["streams"]) for s in sessions["sessions"]] == [
            ("facade00", "edge1", 1)
        ]
        _, streams = await get(edge, "/api/v1/streams")
        (stream,) = streams["streams"]
        assert stream.pop("age_seconds") >= 0
        assert stream == {
            "id": "facade00-1",
            "node": "edge1",
            "target": "localhost:22",
            "user": "ops",
            "entrance": "tcp",
            "bytes_in": 0,
            "bytes_out": 0,
        }


async def test_version() -> None:
    async with open_edge() as edge:
        status, body = await get(edge, "/api/v1/version")
        assert status == 200
        assert body["version"]
        assert body["python"] == sys.version.split()[0]


async def test_errors_are_json_too() -> None:
    async with open_edge() as edge:
        status, body = await get(edge, "/api/v1/secrets")
        assert (status, body["reason"]) == (404, "not_found")
        assert "/api/v1/nodes" in body["detail"]
        status, body = await get(edge, "/api/v1/nodes", "DELETE")
        assert (status, body["reason"]) == (405, "method_not_allowed")


async def test_a_user_sees_the_nodes_that_a_grant_shows_and_no_others() -> None:
    async with open_edge() as edge:
        for name in ("edge1", "edge2", "shop1"):
            edge.attach(name, echo).open(Target(service="ssh"), user="kim", entrance="connect")
        edge.rules.apply(
            AccessChange(
                grants={"everything": grant("everything", verbs=["api"], nodes=["edge*"], targets=[])}
            )
        )
        for path in ("nodes", "nodes?brief=1", "nodes?limit=2", "sessions", "streams"):
            status, body = await get(edge, f"/api/v1/{path}")
            rows = body[path.partition("?")[0]]
            assert (status, [row.get("node") or row["name"] for row in rows]) == (200, ["edge1", "edge2"])
            assert "next" not in body
        first = (await get(edge, "/api/v1/nodes?limit=1"))[1]
        second = (await get(edge, f"/api/v1/nodes?limit=1&after={first['next']}"))[1]
        assert [row["name"] for row in first["nodes"] + second["nodes"]] == ["edge1", "edge2"]
        _, page = await get(edge, "/api/v1/status")
        assert (page["nodes"], page["streams"]) == ({"attached": 2}, 2)
        _, body = await get(edge, "/api/v1/events")
        assert {event["node"] for event in body["events"]} <= {"edge1", "edge2", ""}
        assert (await get(edge, "/api/v1/nodes/edge1"))[0] == 200


async def test_a_node_that_a_user_may_not_read_is_neither_shown_nor_suggested() -> None:
    async with open_edge() as edge:
        edge.attach("shop1", echo)
        only_edges = grant("everything", verbs=["api"], nodes=["edge*"], targets=[])
        edge.rules.apply(AccessChange(grants={"everything": only_edges}))
        status, body = await get(edge, "/api/v1/nodes/shop1")
        assert (status, body["reason"]) == (403, "not_granted")
        status, body = await get(edge, "/api/v1/nodes/shop2")
        assert (status, body["reason"]) == (404, "unknown_node")
        assert "shop1" not in body["detail"]


@pytest.mark.parametrize("name", ["shop1", "shop2"])
async def test_nobody_waits_for_the_events_of_a_node_that_may_not_be_read(name: str) -> None:
    """The answer is the same for a node that nothing here knows. No event may end the wait."""
    async with open_edge() as edge:
        edge.attach("shop1", echo)
        only_edges = grant("everything", verbs=["api"], nodes=["edge*"], targets=[])
        edge.rules.apply(AccessChange(grants={"everything": only_edges}))
        with trio.fail_after(10):
            status, body = await get(edge, f"/api/v1/events?node={name}&wait=30")
        assert (status, body["reason"]) == (403, "not_granted")
        assert body["detail"].startswith(f"user ops may not read node {name}: ")
        assert edge.subscribers._waiting.total() == 0


async def test_a_user_without_the_verb_api_is_refused_with_the_sentence_and_audited() -> None:
    async with open_edge() as edge:
        edge.rules.apply(AccessChange(grants={"everything": grant("everything", verbs=["connect"])}))
        for path in (
            "nodes",
            "nodes?brief=1",
            "sessions",
            "streams",
            "events?wait=9",
            "status",
            "nodes/edge1",
        ):
            status, body = await get(edge, f"/api/v1/{path}")
            assert (status, body["reason"]) == (403, "not_granted")
            assert body["detail"].startswith(
                "user ops may not read the nodes: grant everything lets every user"
            )
        assert [line.reason for line in edge.audit] == ["not_granted"]
        assert (await get(edge, "/api/v1/version"))[0] == 200
        assert (await get(edge, "/api/v1/policy?user=ops&verb=api&node=n1"))[1]["allowed"] is False


async def test_events_that_are_awaited_are_filtered_by_the_grants_of_their_time() -> None:
    async with open_edge() as edge, trio.open_nursery() as nursery:
        answers = list[Any]()
        last = edge.subscribers.events.last_id

        async def ask() -> None:
            answers.append(await get(edge, f"/api/v1/events?after={last}&wait=20"))

        nursery.start_soon(ask)
        while not edge.subscribers._waiting.total():
            await trio.testing.wait_all_tasks_blocked()
        edge.rules.apply(AccessChange(grants={"everything": None}))
        edge.subscribers.events.add(EventKind.ATTACHED, "edge1", "facade00")
        nursery.cancel_scope.deadline = trio.current_time() + 10
        while not answers:
            await trio.testing.wait_all_tasks_blocked()
        assert (answers[0][0], answers[0][1]["reason"]) == (403, "not_granted")
