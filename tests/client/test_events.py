"""``qanat events``: the list, and ``--follow``, which outlives its server."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.client.test_commands import QANAT, environment, inside
from tests.support.fakes.scripted_server import FakeServer, fake_server
from tests.support.pki.authority import write_user_bundle
from tunnel_client.commands import events
from tunnel_client.dial import ServerUnreachable

ATTACHED = {
    "id": 5,
    "at": "2026-01-01T12:00:00.250Z",
    "kind": "attached",
    "node": "edge1",
    "reason": None,
    "detail": "",
}
LOST = ATTACHED | {"id": 6, "kind": "lost", "reason": "ping_timeout", "detail": "no packet received for 30 s"}
STARTED = ATTACHED | {"id": 7, "kind": "server_started", "node": "", "detail": "version 1"}


def page(*items: object, last: int, gap: bool = False) -> dict[str, Any]:
    return {"events": list(items), "last": last, "gap": gap}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeServer]:
    async with fake_server(tmp_path) as server:
        write_user_bundle(tmp_path / "kim.pem", "kim", server.address)
        server.pages["events"] = page(ATTACHED, LOST, last=6)
        yield server


async def test_events_are_a_table(server: FakeServer, tmp_path: Path) -> None:
    result = await inside(tmp_path, "events")
    assert result.exit_code == 0, result.stderr
    head, attached, lost = result.stdout.splitlines()
    assert head.split() == ["TIME", "NODE", "EVENT", "REASON", "DETAIL"]
    assert attached.split() == ["2026-01-01", "12:00:00Z", "edge1", "attached", "-", "-"]
    assert lost.endswith("lost      ping_timeout  no packet received for 30 s")


async def test_events_of_one_node_as_json(server: FakeServer, tmp_path: Path) -> None:
    server.pages["events?node=a+b"] = page(LOST, last=6)
    result = await inside(tmp_path, "events", "a b", "--json")
    assert json.loads(result.stdout) == server.pages["events?node=a+b"]


@pytest.mark.parametrize("answer", [{}, {"events": 5}, {"events": [None]}, page(last=0)])
async def test_an_empty_list_is_reported_as_empty(server: FakeServer, tmp_path: Path, answer: object) -> None:
    server.pages["events"] = answer
    assert (await inside(tmp_path, "events")).stdout.startswith("The server has no such event.")


async def test_a_follower_prints_what_comes_until_ctrl_c(server: FakeServer, tmp_path: Path) -> None:
    server.pages["events"] = page(ATTACHED, last=5)
    server.pages["events?after=5&wait=25"] = page(LOST | {"detail": "\x1b[2J"}, last=6, gap=True)
    server.pages["events?after=6&wait=25"] = page(STARTED, last=7)
    server.pages["events?after=7&wait=25"] = page(last=7)
    command = [*QANAT, "events", "--follow"]
    with trio.fail_after(20):
        process = await trio.lowlevel.open_process(
            command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None and process.stderr is not None
        text = b""
        while text.count(b"\n") < 3:
            text += await process.stdout.receive_some()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        output = await process.stderr.receive_some()
        await process.stdout.aclose()
        await process.stderr.aclose()
    assert text.decode().splitlines() == [
        "2026-01-01 12:00:00Z  edge1             attached        -",
        "2026-01-01 12:00:00Z  edge1             lost            ping_timeout    ?[2J",
        "2026-01-01 12:00:00Z  -                 server_started  -               version 1",
    ]
    assert b"some events before these are lost" in output


async def test_a_follower_ends_when_nothing_reads_it(server: FakeServer, tmp_path: Path) -> None:
    """As in ``qanat events --follow | head -1``, even if no further event happens."""
    server.pages["events"] = page(ATTACHED, last=5)
    server.pages["events?after=5&wait=25"] = page(last=5)
    command = [*QANAT, "events", "--follow"]
    with trio.fail_after(20):
        process = await trio.lowlevel.open_process(
            command, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None and process.stderr is not None
        assert b"attached" in await process.stdout.receive_some()
        await process.stdout.aclose()
        assert await process.wait() == 1
        assert await process.stderr.receive_some() == b""
        await process.stderr.aclose()


async def test_a_follower_ends_when_it_is_refused(server: FakeServer, tmp_path: Path) -> None:
    server.pages["events"] = page(ATTACHED, last=5)
    result = await inside_main_thread(tmp_path)
    assert result.returncode == 1
    assert json.loads(result.stdout.splitlines()[0]) == ATTACHED


async def inside_main_thread(folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Signals can be waited for in a main thread only."""
    with trio.fail_after(20):
        return await trio.run_process(
            [*QANAT, "events", "--follow", "--json"],
            env=environment(folder),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


async def test_a_server_that_is_away_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers: list[Any] = [ServerUnreachable("no way"), ServerUnreachable("no way"), page(LOST, last=6)]

    async def ask(_: object, page: str, *, wait_seconds: float) -> object:
        assert page == "events?node=edge1&after=5&wait=25"
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(events, "ask", ask)
    assert await events._ask_newer(object(), "edge1", 5) == page(LOST, last=6)  # type: ignore[arg-type]
    assert trio.current_time() >= 4
    assert capsys.readouterr().err == "qanat: no way; retrying\n"
