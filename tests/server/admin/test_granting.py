"""Grants beside a running server: a removed grant ends live streams, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from tests.server.admin.test_revoking import echo_of, tunnelled
from tests.server.admin.test_running import qanat_server
from tests.server.test_process import attached, say
from tests.support.pki import authority as pki


async def test_a_removed_grant_ends_the_live_streams_that_no_other_grant_allows(tmp_path: Path) -> None:
    async with attached(tmp_path) as (site, server, _):
        mine, through_tcp = await tunnelled(site, echo_of(site)), await site.through()
        await say(through_tcp, b"hello")
        everything = ("--verb", "connect", "--node", "edge1", "--target", "*")
        assert (await qanat_server(site, "grant", "add", "--user", "lee", *everything))[0] == 0
        code, output = await qanat_server(site, "grant", "remove", "everything", "--yes")
        assert code == 0, output
        with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
            await mine.receive_some()
        assert (await server.line("stream closed"))["reason"] == "not_granted"
        status, phrase, _ = await site.ask("CONNECT edge1:22")
        assert (status, phrase) == (
            403,
            "user kim may not connect to localhost:22 of node edge1: no grant names kim; "
            "ask the administrator of this server",
        )
        assert (await site.ask("GET /api/v1/nodes"))[0] == 403
        _, phrase, _ = await site.ask("CONNECT edge1:22", pki.user_leaf("lee"))
        assert not phrase.startswith("user lee may not")  # the agent's own list refuses it
        await say(through_tcp, b"still there")  # the configuration of the port is its grant
        record = await recorded(site, "kim")
        assert (record["grant"], record["reason"], record["entrance"]) == (
            "everything",
            "not_granted",
            "connect",
        )
        assert (record["bytes_to_target"], record["bytes_to_user"]) == (5, 5)
        _, output = await qanat_server(site, "audit", "--user", "kim", "--json")
        assert [line["kind"] for line in json.loads(output)["audit"]][:2] == ["ended", "refused"]


async def recorded(site: object, user: str) -> dict[str, object]:
    """Return the first record of a user's stream, as soon as the server has written it."""
    while True:
        code, output = await qanat_server(site, "audit", "--streams", "--user", user, "--json")  # type: ignore[arg-type]
        assert code == 0, output
        if streams := json.loads(output)["streams"]:
            record: dict[str, object] = streams[0]
            return record
