"""Every table of ``qanat`` on a terminal of 80 columns: no line is longer, names and states are whole."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.client.test_commands import NODE, QANAT, environment, inside
from tests.support.fakes.scripted_server import FakeServer, fake_server
from tests.support.pki.authority import write_user_bundle
from tunnel_core.cli import tables
from tunnel_core.cli.terminal import line_width
from tunnel_core.version import form

LONG = "shop-7." + "x" * 60 + "." + "y" * 60 + "." + "z" * 60 + ".example.com"
NAMES = ("edge1", "shop-7.stores.example.com", LONG)
STATES = (
    {"state": "attached", "seconds": 187_200.0, "duplicate": True},
    {"state": "degraded", "silent_seconds": 19.0},
    {"state": "gone", "seconds": 9_000.0, "last_reason": "graceful_stop_of_the_agent"},
)
SERVICES = [{"name": f"dashboard-{n}", "protocol": "https", "target": f"10.0.0.{n}:8443"} for n in range(5)]


def nodes() -> list[dict[str, Any]]:
    return [
        NODE | state | {"name": name, "services": SERVICES, "streams": 123}
        for name, state in zip(NAMES, STATES, strict=True)
    ]


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeServer]:
    monkeypatch.setattr(tables, "line_width", lambda: 80)  # the width of a real terminal is tested below
    traffic = {"bytes_in": 999 * 1024**3, "bytes_out": 999 * 1024**3}
    async with fake_server(tmp_path) as server:
        write_user_bundle(tmp_path / "kim.pem", "kim", server.address)
        server.pages["nodes"] = {"nodes": nodes()}
        server.pages["version"] = {
            "version": "0.1.0",
            "tls": "OpenSSL 3.0.19 " + "with patches " * 9,
        }
        server.pages["sessions"] = {
            "sessions": [
                {"id": "0a1b2c3d", "node": name, "since": "2026-01-01T00:00:00Z", "streams": 12345} | traffic
                for name in NAMES
            ]
        }
        server.pages["streams"] = {
            "streams": [
                {
                    "id": "0a1b2c3d-123457",
                    "node": name,
                    "target": "database.internal.example.com:5432",
                    "user": "kim.van.der.berg@example.com",
                    "entrance": "connect",
                    "age_seconds": 187_200,
                }
                | traffic
                for name in NAMES
            ]
        }
        server.pages["events"] = {
            "events": [
                {"at": "2026-01-01T12:00:00.250Z", "kind": "taken_over", "node": name}
                | {"reason": "agent_restarted", "detail": "a newer session came " * 5}
                for name in NAMES
            ],
            "last": 3,
        }
        yield server


HEADERS = {
    "nodes": "NODE STATE RTT STREAMS SERVICES",
    "services": "NODE SERVICE PROTOCOL STATE TARGET",
    "sessions": "SESSION NODE AGE RTT STREAMS IN OUT",
    "streams": "STREAM NODE USER AGE IN OUT TARGET",
    "events": "TIME NODE EVENT REASON DETAIL",
    "version": "WHAT VERSION",
}
WHOLE = {
    "nodes": ["attached 2d4h duplicate", "degraded, silent 19s", "gone 2h graceful_stop_of_the_agent"],
    "services": ["dashboard-4", "10.0.0.4:8443"],
    "sessions": ["0a1b2c3d", "999 GiB"],
    "streams": ["0a1b2c3d-123457", "kim.van.der.berg@example.com", "database.internal.example.com:5432"],
    "events": ["2026-01-01 12:00:00Z", "taken_over", "agent_restarted"],
    "version": ["0.1.0", form()],
}


@pytest.mark.parametrize("command", HEADERS)
async def test_a_table_fits_and_nothing_is_cut(server: FakeServer, tmp_path: Path, command: str) -> None:
    shown = (await inside(tmp_path, command)).stdout
    lines = shown.splitlines()
    assert lines[0].split() == HEADERS[command].split()
    for line in lines:
        assert len(line) <= 80 or line.strip() == LONG
    for text in [*WHOLE[command], *(NAMES if command != "version" else ())]:
        assert text in shown


@pytest.mark.parametrize("command", HEADERS)
async def test_forty_columns_are_enough(
    server: FakeServer, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "line_width", lambda: 40)
    shown = (await inside(tmp_path, command)).stdout
    for line in shown.splitlines():
        assert len(line) <= 40 or " " not in line.strip()
    for text in WHOLE[command]:
        assert "".join(text.split()) in "".join(shown.split())


@pytest.mark.parametrize("command", HEADERS)
async def test_the_header_is_the_same_in_a_pipe(
    server: FakeServer, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "line_width", line_width)
    monkeypatch.setenv("COLUMNS", "40")  # many environments have it
    lines = (await inside(tmp_path, command)).stdout.splitlines()
    assert lines[0].split() == HEADERS[command].split()
    assert len(lines) == 1 + {"services": 15, "version": 4}.get(command, 3)  # a line for each row


async def test_one_node_in_full_fits(server: FakeServer, tmp_path: Path) -> None:
    shown = (await inside(tmp_path, "nodes", "edge1")).stdout
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize(("columns", "given"), [(60, None), (200, "60")])
async def test_a_terminal_reports_its_width(
    server: FakeServer, tmp_path: Path, columns: int, given: str | None
) -> None:
    own, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {key: value for key, value in environment(tmp_path).items() if key != "COLUMNS"}
    environ |= {"COLUMNS": given} if given else {}
    with trio.fail_after(20):
        ran = await trio.run_process([*QANAT, "nodes"], env=environ, stdin=other, stdout=other)
    os.close(other)
    lines = os.read(own, 65536).decode().splitlines()
    os.close(own)
    assert ran.returncode == 0
    assert lines[0].split() == HEADERS["nodes"].split()
    assert 40 < max(len(line) for line in lines if line != LONG) <= 60
