"""``/api/v1/status`` and ``/api/v1/nodes/NAME``: the whole server, and one node in full."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from certs.x509 import Description, VerifiedCertificate
from tests.server.api.test_resources import a_user
from tests.support.fakes.edge import Edge, echo, open_edge, receive_all
from tests.support.fakes.opened_store import Clock, certificate, opened
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.names import Target
from tunnel_core.reasons import Reason
from tunnel_core.session.state import SessionState
from tunnel_core.wire.frames import Service
from tunnel_server.api.server_facts import ServerFacts
from tunnel_server.auth.revocation_list import RevocationKind
from tunnel_server.store.store import Store

STARTED = Clock().now
ADDRESSES = {"agents": ["[::]:7001"], "https": ["[::]:7002"], "admin": ["/run/admin.sock"]}


@dataclass
class Here:
    """A server's API over fake sessions, a real store, and a fixed clock."""

    edge: Edge
    store: Store
    clock: Clock
    ends: datetime = STARTED + timedelta(days=300)
    live: list[VerifiedCertificate] = field(default_factory=list)

    async def get(self, path: str) -> tuple[int, Any]:
        facts = ServerFacts(STARTED, lambda: ADDRESSES, self.describe, self.live_now, self.store)
        https_entrance = self.edge.https_entrance(a_user, self.edge.api(facts, self.clock), entrance="api")
        stream = await self.edge.dial(await self.edge.listen("api", https_entrance.serve))
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode())
        head_bytes, _, body = (await receive_all(stream)).partition(b"\r\n\r\n")
        return int(head_bytes[9:12]), json.loads(body)

    async def status(self) -> dict[str, Any]:
        code, page = await self.get("/api/v1/status")
        assert code == 200
        found: dict[str, Any] = page
        return found

    async def details(self) -> list[str]:
        return [warning["detail"] for warning in (await self.status())["warnings"]]

    def describe(self) -> Description:
        begins = self.ends - timedelta(days=365)
        return Description("main", "issuing", "5e", begins, self.ends, (), ("localhost",), False)

    def live_now(self) -> Sequence[VerifiedCertificate]:
        return self.live


@asynccontextmanager
async def here(folder: Path) -> AsyncIterator[Here]:
    clock = Clock()
    async with opened(folder, clock) as store, open_edge() as edge:
        edge.nodes._wall = clock
        yield Here(edge, store, clock)


async def test_the_page_of_a_server_without_nodes(tmp_path: Path) -> None:
    async with here(tmp_path) as site:
        site.clock.pass_seconds(90)
        page = await site.status()
        assert page.pop("version")
        assert page == {
            "started": "2027-01-01T00:00:00Z",
            "uptime_seconds": 90.0,
            "addresses": {"agents": ["[::]:7001"], "https": ["[::]:7002"]},
            "certificate": {"serial": "5e", "ends": "2027-10-28T00:00:00Z", "names": ["localhost"]},
            "nodes": {},
            "streams": 0,
            "ending": [],
            "nodes_gone": {},
            "warnings": [],
        }


async def test_nodes_are_counted_by_state_and_warned_of(tmp_path: Path) -> None:
    async with here(tmp_path) as site:
        session = site.edge.attach("edge1", echo)
        session.open(Target.parse("localhost:22"), user="ops", entrance="tcp")
        site.edge.attach("edge2", echo).state = SessionState.DEGRADED
        site.edge.attach("edge3", echo).state = SessionState.GRACE
        site.edge.nodes.detach(site.edge.attach("edge4", echo), Reason.PING_TIMEOUT)
        site.clock.pass_seconds(60)
        page = await site.status()
        assert page["nodes"] == {"attached": 1, "degraded": 1, "grace": 1, "gone": 1}
        assert page["streams"] == 1
        assert await site.details() == [
            "node edge3 is not reachable: grace for 60s",
            "node edge4 is not reachable: gone for 60s, ping_timeout",
        ]
        assert page["warnings"][0]["cure"] == "on the node: qanat-agent status, qanat-agent check"


async def test_a_node_that_never_attached_is_reported_and_a_revoked_one_is_not(tmp_path: Path) -> None:
    async with here(tmp_path) as site:
        site.edge.nodes.learn("edge1")
        site.edge.nodes.learn("edge2")
        site.edge.nodes.is_revoked = lambda name: name == "edge2"
        page = await site.status()
        assert page["nodes"] == {"gone": 2}
        assert page["nodes_gone"] == {"revoked": 1, "never_attached": 1}
        assert page["warnings"][0]["cure"].endswith("qanat-server node forget edge1")
        assert [one["detail"] for one in page["warnings"]] == ["node edge1 has never attached"]


async def test_certificates_that_were_not_renewed_are_warned_of(tmp_path: Path) -> None:
    async with here(tmp_path) as site:
        for name, days in (("soon", 10), ("over", 5), ("long-over", 1), ("fresh", 90)):
            await site.store.record(certificate(name, days=days))
        await site.store.record(certificate("renewed", days=10))
        await site.store.record(certificate("renewed", days=90))
        await site.store.record(certificate("kim", role=Role.USER, days=10))
        assert (await site.status())["ending"] == []
        site.clock.pass_seconds(9 * 86_400)
        page = await site.status()
        assert [one["node"] for one in page["ending"]] == ["long-over", "over", "soon"]
        *_, over, soon = page["warnings"]
        assert over["detail"] == "the certificate of node over ended at 2027-01-06 00:00Z, not renewed"
        assert over["cure"].startswith("qanat-server token create --node over, then")
        assert soon["detail"] == "the certificate of node soon ends at 2027-01-11 00:00Z, not renewed"
        assert soon["cure"] == "on the node: qanat-agent check, qanat-agent renew"
        site.clock.pass_seconds(7 * 86_400)  # one of them was given up
        assert [one["node"] for one in (await site.status())["ending"]] == ["over", "soon"]


async def test_a_revoked_node_is_not_expected_to_renew(tmp_path: Path) -> None:
    async with here(tmp_path) as site:
        made = certificate("soon", days=10)
        await site.store.record(made)
        site.clock.pass_seconds(9 * 86_400)
        assert len((await site.status())["ending"]) == 1
        await site.store.revoke(RevocationKind.NODE, "soon", "ops")
        assert (await site.status())["ending"] == []


async def test_the_servers_own_troubles(tmp_path: Path) -> None:
    async with here(tmp_path) as site:
        site.ends = STARTED + timedelta(days=10)
        site.store._dropped_nowait = 3
        assert await site.details() == [
            "the server's certificate ends at 2027-01-11 00:00Z and was not renewed",
            "3 lines of the audit were lost since the start",
        ]


async def test_a_store_that_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    async with here(tmp_path) as site:
        site.store._connection.execute("DROP TABLE certificates")
        page = await site.status()
        assert page["warnings"][0]["detail"].startswith("the store cannot be read: ")
        site.edge.attach("edge1", echo)
        _, answer = await site.get("/api/v1/nodes/edge1")
        assert answer["node"]["certificate"] is None


# One node.


async def test_one_node_with_its_streams_certificate_and_events(tmp_path: Path) -> None:
    async with here(tmp_path) as site:
        session = site.edge.attach("edge1", echo, Service("red", "http", "127.0.0.1:1880"))
        session.open(Target.parse("localhost:22"), user="ops", entrance="tcp")
        site.edge.attach("edge2", echo)
        site.live.append(VerifiedCertificate(SpiffeId("d", Role.USER, "edge1"), "11", STARTED))
        site.live.append(
            VerifiedCertificate(SpiffeId("d", Role.NODE, "edge1"), "ab", STARTED + timedelta(days=30))
        )
        status, answer = await site.get("/api/v1/nodes/edge1")
        assert status == 200
        assert answer["node"]["name"] == "edge1"
        assert answer["node"]["certificate"] == {"serial": "ab", "ends": "2027-01-31T00:00:00Z"}
        assert answer["node"]["services"][0]["name"] == "red"
        assert [stream["target"] for stream in answer["streams"]] == ["localhost:22"]
        assert [(event["kind"], event["node"]) for event in answer["events"]] == [("attached", "edge1")]


async def test_a_node_that_is_gone_has_the_newest_certificate_of_the_store(tmp_path: Path) -> None:
    async with here(tmp_path) as site:
        await site.store.record(certificate("edge1", days=10, serial="aa"))
        await site.store.record(certificate("edge1", days=20, serial="bb"))
        site.edge.nodes.detach(site.edge.attach("edge1", echo), Reason.PING_TIMEOUT)
        _, answer = await site.get("/api/v1/nodes/edge1")
        assert answer["node"]["certificate"] == {"serial": "bb", "ends": "2027-01-21T00:00:00Z"}
        assert answer["streams"] == []
        assert [event["kind"] for event in answer["events"]] == ["attached", "ended"]


async def test_an_unknown_nodes_answer_names_the_nearest(tmp_path: Path) -> None:
    async with here(tmp_path) as site:
        site.edge.attach("edge1", echo)
        status, answer = await site.get("/api/v1/nodes/edge7")
        assert (status, answer["reason"]) == (404, "unknown_node")
        assert "nearest: edge1" in answer["detail"]
        for path in ("/api/v1/nodes/", "/api/v1/nodes/%ff%00/x", "/api/v1/nodes/" + "x" * 2000):
            assert (await site.get(path))[0] == 404


async def test_names_alone_are_brief(tmp_path: Path) -> None:
    async with here(tmp_path) as site:
        site.edge.attach("edge1", echo)
        _, answer = await site.get("/api/v1/nodes?brief=1")
        assert answer == {
            "nodes": [{"name": "edge1", "alias": "edge1", "state": "attached", "category": "reachable"}]
        }
