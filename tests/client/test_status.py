"""``qanat status`` and ``qanat nodes NODE``, with a current server and with an older one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from certs.validity import ValidityPeriod
from tests.client.test_commands import GONE, NODE, inside
from tests.support.fakes.scripted_server import FakeServer, fake_server
from tests.support.pki.authority import write_user_bundle
from tunnel_client.status import UserCertificate, from_pages, lines_of, page_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STATUS = {
    "version": "9.9",
    "started": "2026-02-28T12:00:00Z",
    "addresses": {"agents": ["[::]:7001"], "https": ["[::]:7002"], "web": []},
    "certificate": {"serial": "ab", "ends": "2027-01-01T00:00:00Z", "names": ["localhost"]},
    "nodes": {"attached": 2, "gone": 1},
    "streams": 7,
    "warnings": [{"detail": "node edge2 is not reachable: \x1b[2J", "cure": "on it: qanat-agent status"}],
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeServer]:
    async with fake_server(tmp_path) as server:
        write_user_bundle(tmp_path / "kim.pem", "kim", server.address)
        yield server


async def test_the_page_has_what_counts_and_what_to_do(server: FakeServer, tmp_path: Path) -> None:
    server.pages["status"] = STATUS
    result = await inside(tmp_path, "status")
    assert result.exit_code == 0, result.stderr
    facts = dict(line.split(maxsplit=1) for line in result.stdout.partition("\n\n")[0].splitlines())
    assert facts["server"].startswith("9.9, running since 2026-02-28 12:00:00Z (")
    assert facts["addresses"] == "agents [::]:7001, https [::]:7002"
    assert facts["nodes"] == "3: 2 attached, 1 gone"
    assert facts["streams"] == "7"
    assert facts["certificate"] == "until 2027-01-01 00:00Z, of the server"
    assert facts["yours"].startswith("user kim, until ")
    *_, head, warning, cure = result.stdout.splitlines()
    assert (head, cure) == ("Needs attention:", "      on it: qanat-agent status")
    assert warning == "  node edge2 is not reachable: ?[2J"


async def test_the_page_as_json(server: FakeServer, tmp_path: Path) -> None:
    server.pages["status"] = STATUS
    page = json.loads((await inside(tmp_path, "status", "--json")).stdout)
    assert page["server"] == {key: value for key, value in STATUS.items() if key != "warnings"}
    assert page["client"]["certificate"]["name"] == "kim"
    assert page["warnings"] == STATUS["warnings"]


async def test_an_older_server_gives_less(server: FakeServer, tmp_path: Path) -> None:
    server.pages |= {"version": {"version": "0.1.0"}, "nodes": {"nodes": [NODE, GONE]}}
    page = json.loads((await inside(tmp_path, "status", "--json")).stdout)
    assert page["server"] == {"version": "0.1.0", "nodes": {"attached": 1, "gone": 1}, "streams": 0}
    assert [one["detail"] for one in page["warnings"]] == [
        "node edge2 is not reachable: gone 5h ping_timeout"
    ]
    assert "Needs attention" in (await inside(tmp_path, "status")).stdout


def test_the_page_fits_a_terminal_and_lists_the_nodes_that_are_gone() -> None:
    name = "a-node-of-" + "a-shop-" * 8 + "7"
    warning = {
        "detail": f"node {name} has never attached",
        "cure": "on the node: run it; " + "or forget it " * 6,
    }
    gone = {"nodes": {"gone": 5, "attached": 1}, "nodes_gone": {"revoked": 1, "never_attached": 3}}
    lines = lines_of(page_of(STATUS | gone | {"warnings": [warning]}, None, "1", NOW), "way " * 20, NOW, 80)
    assert "nodes        6: 5 gone (1 revoked, 3 never attached), 1 attached" in lines
    assert [line for line in lines if len(line) > 80] == []
    assert f"  node {name}" in "\n".join(lines)


def own(days_left: float) -> UserCertificate:
    ends = NOW + timedelta(days=days_left)
    return UserCertificate("kim", ValidityPeriod("ab", ends - timedelta(days=100), ends))


@pytest.mark.parametrize(
    ("days_left", "expected"),
    [(50, None), (10, "your certificate (kim) ends at"), (-1, "your certificate (kim) ended at")],
)
def test_a_person_is_reminded_of_the_own_certificate(days_left: float, expected: str | None) -> None:
    page = page_of({}, own(days_left), "0.1.0", NOW)
    details = [one["detail"] for one in page["warnings"]]
    assert details == [] if expected is None else expected in details[0]
    assert expected is None or page["warnings"][0]["cure"] == "on the server: qanat-server issue user kim"


def test_a_user_of_a_socket_has_no_certificate() -> None:
    page = page_of({"version": "1"}, None, "0.1.0", NOW)
    lines = lines_of(page, "the server at /run/admin.sock", NOW)
    assert lines == ["server       1, the server at /run/admin.sock", "", "Nothing needs attention."]


def test_many_warnings_are_counted() -> None:
    nodes: dict[str, Any] = {"nodes": [GONE | {"name": f"edge{number}"} for number in range(50)]}
    lines = lines_of(page_of(from_pages({}, nodes, {}), None, "0.1.0", NOW), "", NOW)
    assert lines[-1] == "  and 30 more: qanat status --json"


@pytest.mark.parametrize(
    "status",
    [{"nodes": 5, "addresses": [], "certificate": "x", "warnings": [None]}, {"nodes": {"a": "b"}}],
)
async def test_answers_of_other_versions_crash_nothing(
    server: FakeServer, tmp_path: Path, status: dict[str, Any]
) -> None:
    server.pages["status"] = status
    assert (await inside(tmp_path, "status")).exit_code == 0


# One node.

EVENT = {
    "at": "2026-01-01T12:00:00.250Z",
    "kind": "lost",
    "node": "edge1",
    "reason": "ping_timeout",
    "detail": "",
}
STREAM = {
    "id": "0a-1",
    "node": "edge1",
    "target": "web",
    "user": "kim",
    "entrance": "connect",
    "age_seconds": 7,
}


async def test_one_node_in_full(server: FakeServer, tmp_path: Path) -> None:
    certificate = {"serial": "ab12", "ends": "2026-12-01T00:00:00Z"}
    node = NODE | {"alias": "e1", "session_since": "2026-01-01T00:00:00Z", "certificate": certificate}
    server.pages["nodes/edge1"] = {"node": node, "streams": [STREAM], "events": [EVENT]}
    shown = (await inside(tmp_path, "nodes", "edge1")).stdout
    for text in (
        *(
            "edge1 (alias e1)",
            "attached 5h",
            "since 2026-01-01 00:00:00Z",
            "192.0.2.1:5",
            "qanat-agent/0.1.0",
        ),
        *("42 ms", "until 2026-12-01 00:00Z, serial ab12", "2026-01-01 05:00:00Z (0s ago)", "0a-1", "kim"),
        *("127.0.0.1:1880", "2026-01-01 12:00:00Z  lost", "ping_timeout"),
    ):
        assert text in shown
    whole = json.loads((await inside(tmp_path, "nodes", "edge1", "--json")).stdout)
    assert whole == server.pages["nodes/edge1"]


async def test_an_older_server_shows_less_of_one_node(server: FakeServer, tmp_path: Path) -> None:
    server.pages |= {
        "nodes": {"nodes": [NODE, GONE]},
        "streams": {"streams": [STREAM, STREAM | {"node": "edge2", "id": "0b-1"}]},
        "events?node=edge1": {"events": [EVENT], "last": 1},
    }
    answer = json.loads((await inside(tmp_path, "nodes", "edge1", "--json")).stdout)
    assert (answer["node"], answer["streams"], answer["events"]) == (NODE, [STREAM], [EVENT])
    unknown = await inside(tmp_path, "nodes", "edge9")
    assert (unknown.exit_code, unknown.stderr) == (4, "qanat: no node edge9 is known; see: qanat nodes\n")


async def test_names_are_quoted_in_the_path(server: FakeServer, tmp_path: Path) -> None:
    server.pages["nodes/a%2Fb%3Fc"] = {"node": NODE}
    assert (await inside(tmp_path, "nodes", "a/b?c")).exit_code == 0
