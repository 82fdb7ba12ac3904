"""The ``qanat`` command as people and scripts run it: real processes, exit codes, output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

from tests.support.fakes.scripted_server import FakeServer, echo, fake_server
from tests.support.pki.authority import write_user_bundle
from tunnel_client.main import main
from tunnel_client.node_facts import state_of
from tunnel_core.reasons import Reason, Refused
from tunnel_core.version import __version__, form

ROOT = Path(__file__).parents[2]
QANAT = [sys.executable, "-c", "from tunnel_client.main import main; main(prog_name='qanat')"]
NODE = {
    "name": "edge1",
    "alias": "edge1",
    "state": "attached",
    "address": "192.0.2.1:5",
    "software": "qanat-agent/0.1.0",
    "since": "2026-01-01T00:00:00Z",
    "last_seen": "2026-01-01T05:00:00Z",
    "seconds": 18000.0,
    "silent_seconds": 0.4,
    "round_trip_ms": 41.7,
    "streams": 2,
    "services": [{"name": "web", "protocol": "http", "target": "127.0.0.1:1880"}],
    "bytes_in": 1536,
    "bytes_out": 5 * 1024**3,
    "last_reason": None,
}
GONE = NODE | {"name": "edge2", "state": "gone", "last_reason": "ping_timeout", "services": []}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeServer]:
    async with fake_server(tmp_path) as server:
        write_user_bundle(tmp_path / "kim.pem", "kim", server.address)
        server.pages["nodes"] = {"nodes": [NODE, GONE]}
        yield server


def environment(folder: Path) -> dict[str, str]:
    """Return an environment without the files and settings of the person who runs the tests."""
    own = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "c"), "XDG_DATA_HOME": str(folder / "d")}
    return {**os.environ, **own, "QANAT_BUNDLE": str(folder / "kim.pem"), "PYTHONPATH": str(ROOT)}


async def qanat(
    folder: Path, *arguments: str, stdin: Any = b"", stdout: Any = None
) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(20):
        return await trio.run_process(
            [*QANAT, *arguments],
            env=environment(folder),
            stdin=stdin,
            **({"capture_stdout": True} if stdout is None else {"stdout": stdout}),
            capture_stderr=True,
            check=False,
        )


async def inside(folder: Path, *arguments: str) -> Result:
    """Run the command in a thread of this process, for tests without real descriptors and signals."""
    invoke = partial(CliRunner(env=environment(folder)).invoke, main, arguments, prog_name="qanat")
    with trio.fail_after(20):
        result = await trio.to_thread.run_sync(invoke)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# nodes, sessions, streams, version


async def test_nodes_are_aligned_columns_when_piped(server: FakeServer, tmp_path: Path) -> None:
    result = await inside(tmp_path, "nodes")
    assert result.exit_code == 0, result.stderr
    head, attached, gone = result.stdout.splitlines()
    assert head.split() == ["NODE", "STATE", "RTT", "STREAMS", "SERVICES"]
    assert attached.split("  ")[0] == "edge1"
    for cell in ("attached 5h", "42 ms", "web (http)"):
        assert cell in attached
    assert "ping_timeout" in gone
    assert gone.endswith("-")
    assert head.index("STATE") == attached.index("attached") == gone.index("gone")


async def test_the_rest_of_the_nodes_is_wide(server: FakeServer, tmp_path: Path) -> None:
    result = await inside(tmp_path, "nodes", "--wide")
    head, attached, _ = result.stdout.splitlines()
    assert head.split()[5:] == ["ALIAS", "ADDRESS", "IN", "OUT"]
    for cell in ("192.0.2.1:5", "1.5 KiB", "5.0 GiB"):
        assert cell in attached


async def test_nodes_as_json_are_what_the_server_sent(server: FakeServer, tmp_path: Path) -> None:
    result = await inside(tmp_path, "nodes", "--json")
    assert json.loads(result.stdout) == server.pages["nodes"]


async def test_an_empty_list_of_nodes_names_the_next_step(server: FakeServer, tmp_path: Path) -> None:
    server.pages["nodes"] = {"nodes": []}
    result = await inside(tmp_path, "nodes")
    assert result.stdout.startswith("No node is known yet.")


async def test_sessions_and_streams_are_listed(server: FakeServer, tmp_path: Path) -> None:
    server.pages["sessions"] = {"sessions": [NODE | {"id": "0a1b2c3d", "node": "edge1"}]}
    stream = {"id": "0a1b2c3d-1", "node": "edge1", "target": "web", "user": "kim", "entrance": "connect"}
    server.pages["streams"] = {"streams": [stream | {"age_seconds": 7.2, "bytes_in": 1, "bytes_out": 2}]}
    sessions, streams = await inside(tmp_path, "sessions"), await inside(tmp_path, "streams")
    assert "0a1b2c3d  edge1" in sessions.stdout
    last = streams.stdout.splitlines()[-1].split()
    assert last == ["0a1b2c3d-1", "edge1", "kim", "7s", "1", "B", "2", "B", "web"]


async def test_version_shows_both_ends(server: FakeServer, tmp_path: Path) -> None:
    server.pages["version"] = {"version": "9.9"}
    result = await inside(tmp_path, "version", "--json")
    shown = json.loads(result.stdout)
    assert shown["server"] == {"version": "9.9"}
    assert (shown["client"], shown["client_form"]) == (__version__, form())


@pytest.mark.parametrize("page", [{}, {"nodes": 5}, {"nodes": [None, {"name": {}, "streams": []}]}])
async def test_answers_of_other_versions_crash_nothing(
    server: FakeServer, tmp_path: Path, page: dict[str, Any]
) -> None:
    server.pages["nodes"] = page
    assert (await inside(tmp_path, "nodes")).exit_code == 0


async def test_the_bundle_may_stand_before_or_behind_the_subcommand(
    server: FakeServer, tmp_path: Path
) -> None:
    bundle = str((tmp_path / "kim.pem").rename(tmp_path / "moved.pem"))
    assert (await inside(tmp_path, "nodes")).exit_code == 2
    assert (await inside(tmp_path, "--bundle", bundle, "nodes")).exit_code == 0
    assert (await inside(tmp_path, "nodes", "--bundle", bundle)).exit_code == 0


async def test_a_server_that_is_away_has_its_exit_code(tmp_path: Path) -> None:
    write_user_bundle(tmp_path / "kim.pem", "kim", "localhost:1")
    result = await inside(tmp_path, "nodes", "--json")
    assert result.exit_code == 5
    assert json.loads(result.stdout)["reason"] == "unreachable"


# connect


async def test_connect_is_binary_safe_and_half_closes(server: FakeServer, tmp_path: Path) -> None:
    payload = bytes(range(256)) * 2048
    result = await qanat(tmp_path, "connect", "edge1", "7", stdin=payload)
    assert result.returncode == 0, result.stderr
    assert result.stdout == payload


async def test_connect_reaches_a_unix_socket_whose_name_is_not_ascii(
    server: FakeServer, tmp_path: Path
) -> None:
    server.targets["unix:/tmp/b\u00fccher.sock"] = echo
    done = await qanat(tmp_path, "connect", "edge1", "unix:/tmp/b\u00fccher.sock", stdin=b"hello")
    assert (done.returncode, done.stdout) == (0, b"hello"), done.stderr


@pytest.mark.parametrize("command", ["connect", "forward"])
@pytest.mark.parametrize("name", [b"unix:/tmp/b\xfccher.sock", b"unix:/tmp/a\nb"])
async def test_a_path_that_no_header_can_carry_is_refused_with_a_sentence(
    command: str, name: bytes, server: FakeServer, tmp_path: Path
) -> None:
    done = await qanat(tmp_path, command, "edge1", os.fsdecode(name))
    assert done.returncode == 2
    assert b"socket path" in done.stderr
    assert b"Traceback" not in done.stderr


async def test_connect_works_with_files(server: FakeServer, tmp_path: Path) -> None:
    payload = bytes(range(256)) * 2048
    (tmp_path / "in").write_bytes(payload)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        result = await qanat(tmp_path, "connect", "edge1", "7", stdin=source, stdout=sink)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out").read_bytes() == payload


async def test_connect_delivers_what_comes_after_its_input_ended(server: FakeServer, tmp_path: Path) -> None:
    async def count(stream: trio.abc.HalfCloseableStream, first: bytes) -> None:
        length = len(first) + sum([len(chunk) async for chunk in stream])
        await stream.send_all(b"%d bytes" % length)

    server.targets["localhost:9"] = count
    result = await qanat(tmp_path, "connect", "edge1", "9", stdin=subprocess.DEVNULL)
    assert (result.returncode, result.stdout) == (0, b"0 bytes")


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (Refused(Reason.TARGET_NOT_ALLOWED, "not on edge1"), 3),
        (Refused(Reason.NODE_NOT_ATTACHED, "edge1 has no agent"), 4),
        (Refused(Reason.DIAL_REFUSED, "nothing listens on edge1 port 22"), 1),
    ],
)
async def test_connect_exits_by_the_refusal(
    server: FakeServer, tmp_path: Path, refused: Refused, code: int
) -> None:
    server.targets["localhost:22"] = refused
    result = await qanat(tmp_path, "connect", "edge1", "22", stdin=b"never sent")
    assert (result.returncode, result.stdout) == (code, b"")
    assert result.stderr.decode() == f"qanat: {refused.detail}\n"


async def test_connect_distinguishes_a_break_from_an_end(server: FakeServer, tmp_path: Path) -> None:
    async def break_off(stream: trio.abc.HalfCloseableStream, first: bytes) -> None:
        await stream.send_all(b"half of i")
        stream.abort()  # type: ignore[attr-defined]

    server.targets["localhost:9"] = break_off
    result = await qanat(tmp_path, "connect", "edge1", "9")
    assert result.returncode == 1
    assert b"the connection to edge1 localhost:9 broke:" in result.stderr


async def test_connect_refuses_what_is_no_target(server: FakeServer, tmp_path: Path) -> None:
    result = await inside(tmp_path, "connect", "edge1", "::1:80")
    assert result.exit_code == 2
    assert result.stderr.startswith("qanat: TARGET: not a host name")


# forward


async def test_forward_announces_serves_and_ends_at_ctrl_c(server: FakeServer, tmp_path: Path) -> None:
    async with forwarding(tmp_path, "edge1", "7", "--json") as process:
        assert process.stdout is not None
        announced = json.loads(await process.stdout.receive_some())
        assert (announced["node"], announced["target"]) == ("edge1", "localhost:7")
        port = int(announced["listen"].rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            process.send_signal(signal.SIGINT)
            with trio.fail_after(10):
                assert await process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_forward_ends_with_its_terminal(
    server: FakeServer, tmp_path: Path, number: signal.Signals
) -> None:
    async with forwarding(tmp_path, "edge1", "7") as process:
        assert process.stdout is not None
        await process.stdout.receive_some()
        process.send_signal(number)
        with trio.fail_after(10):
            assert await process.wait() == 0


async def test_forward_outlives_the_reader_of_its_messages(server: FakeServer, tmp_path: Path) -> None:
    """A refusal that cannot be printed ends no other connection."""
    async with forwarding(tmp_path, "edge1", "9", "--json", stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        await process.stderr.aclose()
        port = int(json.loads(await process.stdout.receive_some())["listen"].rpartition(":")[2])
        for _ in range(2):  # the first is refused with a message, and so is the second
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                with pytest.raises(trio.BrokenResourceError):
                    while await stream.receive_some():
                        pass
                    raise trio.BrokenResourceError
        process.send_signal(signal.SIGINT)
        with trio.fail_after(10):
            assert await process.wait() == 0


class forwarding:  # noqa: N801 - reads as a function
    """Run ``qanat forward``, and kill it at the end if it still runs."""

    def __init__(self, folder: Path, *arguments: str, stderr: int | None = None) -> None:
        self._open = partial(
            trio.lowlevel.open_process,
            [*QANAT, "forward", *arguments],
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=stderr,
        )

    async def __aenter__(self) -> trio.Process:
        self._process = await self._open()
        return self._process

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        with trio.CancelScope(shield=True):
            await self._process.wait()
        if self._process.stdout:
            await self._process.stdout.aclose()


@pytest.mark.parametrize(
    ("node", "code", "sentence"),
    [("edge2", 4, "node edge2 has no agent attached"), ("edge9", 4, "no node edge9 is known")],
)
async def test_forward_reports_at_once_that_a_node_is_absent(
    server: FakeServer, tmp_path: Path, node: str, code: int, sentence: str
) -> None:
    result = await inside(tmp_path, "forward", node, "22")
    assert result.exit_code == code
    assert sentence in result.stderr


@pytest.mark.parametrize(
    ("services", "published"), [(["status", "flows"], "flows, status"), ([], "none")], ids=["two", "none"]
)
async def test_forward_reports_at_once_that_a_service_is_not_published(
    server: FakeServer, tmp_path: Path, services: list[str], published: str
) -> None:
    node = NODE | {"services": [{"name": name, "protocol": "http"} for name in services]}
    server.pages["nodes/edge1"] = {"node": node, "streams": [], "events": []}
    result = await inside(tmp_path, "forward", "edge1", "flwos", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (
        1,
        {
            "reason": "unknown_service",
            "detail": f"node edge1 publishes no service flwos; it publishes: {published}",
        },
    )


@pytest.mark.parametrize("change", [{"state": "grace"}, {"services": None}], ids=["lost", "older server"])
async def test_forward_serves_a_service_that_may_be_there(
    server: FakeServer, tmp_path: Path, change: dict[str, Any]
) -> None:
    server.pages["nodes"] = {"nodes": [NODE | change]}
    async with forwarding(tmp_path, "edge1", "flows", "--json") as process:
        assert process.stdout is not None
        with trio.fail_after(10):
            assert json.loads(await process.stdout.receive_some())["target"] == "flows"


async def test_forward_reports_at_once_that_a_node_was_revoked(server: FakeServer, tmp_path: Path) -> None:
    server.pages["nodes"] = {"nodes": [GONE | {"revoked": True}]}
    result = await inside(tmp_path, "forward", "edge2", "22")
    assert result.exit_code == 3
    assert "node edge2 was revoked; on the server: qanat-server node unrevoke edge2, or " in result.stderr
    assert "qanat-server token create --node edge2" in result.stderr


@pytest.mark.parametrize("state", ["degraded", "grace", "hibernating"])
async def test_forward_serves_a_node_in_any_state_but_absent(
    server: FakeServer, tmp_path: Path, state: str
) -> None:
    server.pages["nodes"] = {"nodes": [NODE | {"state": state}]}
    async with forwarding(tmp_path, "edge1", "7", "--json") as process:
        assert process.stdout is not None
        with trio.fail_after(10):
            assert json.loads(await process.stdout.receive_some())["node"] == "edge1"


async def test_forward_uses_the_category_of_a_newer_server(server: FakeServer, tmp_path: Path) -> None:
    node = NODE | {"state": "hibernating", "category": "absent"}
    server.pages["nodes/edge1"] = {"node": node, "streams": [], "events": []}
    assert (await inside(tmp_path, "forward", "edge1", "22")).exit_code == 4


@pytest.mark.parametrize("local", ["x", "127.0.0.1:70000", "fe80::1:0", "-1"])
async def test_forward_refuses_what_is_no_local_address(
    server: FakeServer, tmp_path: Path, local: str
) -> None:
    result = await inside(tmp_path, "forward", "edge1", "22", "--", local)
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("node", "shown"),
    [
        ({"state": "attached", "seconds": 200.0, "silent_seconds": 9.0}, "attached 3m"),
        ({"state": "degraded", "seconds": 200.0, "silent_seconds": 9.0}, "degraded, silent 9s"),
        ({"state": "grace", "seconds": 9.1, "last_reason": "carrier_lost"}, "grace 9s carrier_lost"),
        ({"state": "gone", "seconds": 8000.0, "last_reason": "grace_expired"}, "gone 2h grace_expired"),
        ({"state": "attached", "seconds": 5.0, "duplicate": True}, "attached 5s duplicate"),
        ({"state": "gone", "seconds": 8000.0, "last_seen": None}, "never attached"),
        ({"state": "gone", "seconds": 8000.0, "last_seen": None, "revoked": True}, "never attached revoked"),
        ({"state": "gone", "seconds": 8000.0, "last_reason": "revoked", "revoked": True}, "gone 2h revoked"),
        ({}, ""),
    ],
)
def test_a_node_has_the_category_that_a_request_would_meet(node: dict[str, Any], shown: str) -> None:
    assert state_of(node) == shown


# the command as a whole


def test_qanat_imports_neither_grpc_nor_linux_only_modules() -> None:
    code = (
        "import sys, tunnel_client.main as m; import click; c = click.Context(m.main);"
        "[m.main.get_command(c, n) for n in m.main.list_commands(c)];"
        "print([n for n in ("
        "'grpc', 'tunnel_core.carrier.asyncio_bridge', 'cryptography', 'tunnel_server', 'tunnel_agent'"
        ") if n in sys.modules])"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env=environ, check=True, capture_output=True).stdout  # noqa: S603
    assert printed.strip() == b"[]"
