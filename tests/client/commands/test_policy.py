from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.test_commands import inside
from tests.support.fakes.scripted_server import FakeServer, fake_server
from tests.support.pki.authority import write_user_bundle


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeServer]:
    async with fake_server(tmp_path) as server:
        write_user_bundle(tmp_path / "kim.pem", "kim", server.address)
        yield server


async def test_policy_test_says_yes_or_no_and_which_grant(server: FakeServer, tmp_path: Path) -> None:
    query = "policy?user=kim&verb=connect&node=edge1&target="
    server.pages[f"{query}ssh"] = {"allowed": True, "detail": "grant g7 allows it", "grant": {"id": "g7"}}
    server.pages[f"{query}22"] = {"allowed": False, "detail": "user kim may not\n", "grant": None}
    result = await inside(tmp_path, "policy", "test", "kim", "connect", "edge1", "ssh")
    assert (result.exit_code, result.stdout) == (0, "yes: grant g7 allows it\n")
    result = await inside(tmp_path, "policy", "test", "kim", "connect", "edge1", "22")
    assert (result.exit_code, result.stdout.rstrip()) == (3, "no: user kim may not?")
    result = await inside(tmp_path, "policy", "test", "kim", "connect", "edge1", "22", "--json")
    assert (result.exit_code, json.loads(result.stdout)["grant"]) == (3, None)
    result = await inside(tmp_path, "policy", "test", "kim", "fly", "edge1", "22")
    assert result.exit_code == 2
