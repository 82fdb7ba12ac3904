"""``qanat nodes --watch``: in place on a terminal, a line per change in a pipe, over a restart."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.client.test_commands import GONE, NODE, QANAT, environment
from tests.support.fakes.scripted_server import FakeServer, fake_server
from tests.support.pki.authority import write_user_bundle
from tunnel_client import watching
from tunnel_client.dial import ServerUnreachable
from tunnel_client.watching import REFRESH_SECONDS, ChangeView, ScreenView, watch_nodes
from tunnel_core.reasons import Reason, Refused


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeServer]:
    async with fake_server(tmp_path) as server:
        write_user_bundle(tmp_path / "kim.pem", "kim", server.address)
        server.pages["nodes"] = {"nodes": [NODE, GONE]}
        yield server


class Answers:
    """A server's answers, one after the other. The last one ends the watching."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
        self.left = list(answers)
        self.asked_at: list[float] = []
        monkeypatch.setattr(watching, "ask_nodes", self)

    async def __call__(self, _: object) -> Any:
        self.asked_at.append(trio.current_time())
        answer = self.left.pop(0) if self.left else Refused(Reason.UNAUTHENTICATED, "that is all")
        if isinstance(answer, Exception):
            raise answer
        await trio.sleep(answer.get("takes", 0))
        return answer


def page(*nodes: object, takes: float = 0) -> dict[str, Any]:
    return {"nodes": list(nodes), "takes": takes}


async def watched(name: str = "", **options: bool) -> None:
    with pytest.raises(Refused, match="that is all"):
        await watch_nodes(object(), name, **options)  # type: ignore[arg-type]


async def test_in_a_pipe_only_changes_are_printed(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    later = NODE | {"seconds": 18002.0, "round_trip_ms": 12.0, "streams": 3}
    lost = NODE | {
        "state": "grace",
        "since": "2026-01-01T06:00:00Z",
        "last_reason": "ping_timeout",
        "seconds": 1.0,
    }
    away = ServerUnreachable("no way")
    Answers(monkeypatch, page(NODE, GONE), page(later, GONE), away, away, page(lost))
    await watched()
    printed, warned = capsys.readouterr()
    assert [line.split(maxsplit=2)[2] for line in printed.splitlines()] == [
        "edge1             attached 5h",
        "edge2             gone 5h ping_timeout",
        "edge1             grace 1s ping_timeout",
        "edge2             forgotten",
    ]
    assert all(line[19:20] == "Z" for line in printed.splitlines())
    assert warned.splitlines() == ["qanat: no way; retrying", "qanat: the server answers again"]


async def test_one_node_as_json(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Answers(monkeypatch, page(NODE, GONE | {"alias": "e2"}), page(NODE))
    await watched("e2", as_json=True)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [GONE | {"alias": "e2"}, {"name": "edge2", "state": None}]


async def test_a_slow_answer_is_asked_for_less_often(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    answers = Answers(monkeypatch, page(NODE), page(NODE, takes=1), page(NODE))
    await watched()
    first, second, third, _ = answers.asked_at
    assert second - first == pytest.approx(REFRESH_SECONDS)
    assert third - second == pytest.approx(11)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_screen_shows_what_fits_and_leaves_it_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("COLUMNS", "80")
    view = ScreenView(wide=False)
    view.show([NODE | {"name": f"edge{number}"} for number in range(30)], "it is away\x1b[2J")
    shown = screen.getvalue()
    assert shown.startswith("\x1b[H")
    assert shown.count("\n") == 9
    assert "it is away?[2J; retrying" in shown
    assert "more lines: qanat nodes" in shown
    screen.truncate(0)
    view.leave()
    assert "\x1b" not in screen.getvalue()


async def test_a_watch_without_nodes_prints_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ScreenView(wide=False).show([], "")
    assert "No such node is known." in capsys.readouterr().out


def test_an_age_alone_is_no_change(capsys: pytest.CaptureFixture[str]) -> None:
    view = ChangeView(as_json=False)
    view.show([NODE], "")
    view.show([NODE | {"seconds": 5.0, "silent_seconds": 9, "bytes_in": 5}], "")
    assert len(capsys.readouterr().out.splitlines()) == 1


async def test_a_real_terminal_is_restored_at_ctrl_c(server: FakeServer, tmp_path: Path) -> None:
    own, other = pty.openpty()
    environ = environment(tmp_path) | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with trio.fail_after(20):
        process = await trio.lowlevel.open_process(
            [*QANAT, "nodes", "--watch"], env=environ, stdin=other, stdout=other, stderr=subprocess.PIPE
        )
        os.close(other)
        assert process.stderr is not None
        seen = b""
        while b"edge2" not in seen:
            seen += await trio.to_thread.run_sync(os.read, own, 65536)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        await process.stderr.aclose()
        seen += await trio.to_thread.run_sync(os.read, own, 65536)
    os.close(own)
    assert seen.startswith(b"\x1b[?1049h\x1b[?25l")
    assert b"\x1b[?25h\x1b[?1049l" in seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_is_its_ordinary_end(server: FakeServer, tmp_path: Path, number: int) -> None:
    with trio.fail_after(20):
        process = await trio.lowlevel.open_process(
            [*QANAT, "nodes", "--watch"],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        assert b"edge1" in await process.stdout.receive_some()
        process.send_signal(number)
        assert await process.wait() == 0
        assert await process.stderr.receive_some() == b""
        await process.stdout.aclose()
        await process.stderr.aclose()
