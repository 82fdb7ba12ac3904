"""The agent as a process against a server of carriers: attach, serve, status, and the two ways to stop."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.fakes.grpc_site import Site, open_site
from tests.support.fakes.memory_link import welcome
from tests.support.net.listening import echo, listening
from tests.support.pki.authority import write_node_bundle
from tests.support.processes.servers import unread
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import ServerHandshake
from tunnel_core.session.session import Session
from tunnel_core.streams.tunnel_stream import StreamReset, TunnelStream

COMMAND = [sys.executable, "-c", "from tunnel_agent.entry import entry_point; entry_point()"]


class Rig:
    """A running agent, the server's end of its session, and a target that it may dial."""

    def __init__(self, process: trio.Process, session: Session, target: str, config: Path, ops: str) -> None:
        self.process = process
        self.session = session
        self.target = target
        self.config = config
        self.ops = ops

    async def open(self, target: str = "") -> TunnelStream:
        stream = self.session.open(Target.parse(target or self.target), user="kim", entrance="tcp")
        await stream.wait_opened()
        return stream

    async def ask(self, path: str) -> bytes:
        """A page of the ops listener, head and all."""
        host, _, port = self.ops.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(
                f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
            )
            return b"".join([piece async for piece in stream])

    async def wait_draining(self) -> None:
        """Wait until the agent has sent that it accepts no new streams."""
        while True:
            try:
                self.session.open(Target.parse(self.target), user="kim", entrance="tcp").reset(
                    Reason.USER_LEFT
                )
            except Refused as refused:
                assert refused.reason is Reason.AGENT_STOPPING
                return
            await trio.sleep(0.01)


async def accept_agent(site: Site, nursery: trio.Nursery) -> Session:
    sessions: list[Session] = []

    def used(attempt: Attachment) -> None:
        assert attempt.handshake.hello is not None
        received_hello, answered, limits = attempt.handshake.hello, attempt.welcome, Limits()
        pool = CreditPool(2**28)
        sessions.append(
            Session(received_hello, answered, opener=True, node="edge1", limits=limits, pool=pool)
        )
        sessions[0].move_to(attempt, 0)

    steps = ServerHandshake(lambda _: welcome(Limits()))
    await Attachment(await site.accept(), steps, used).settle(10)
    nursery.start_soon(sessions[0].run)
    return sessions[0]


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


@asynccontextmanager
async def running_agent(folder: Path, drain_seconds: float = 8.0) -> AsyncIterator[Rig]:
    ops, config = f"127.0.0.1:{free_port()}", folder / "agent.toml"
    with trio.fail_after(20):
        async with listening(echo) as target, open_site() as site, trio.open_nursery() as nursery:
            text = f'allow = ["{target}"]\ndrain_seconds = {drain_seconds}\n[ops]\nlisten = "{ops}"\n'
            text += "[link]\nmax_bytes_per_second = 100000000\n"
            config.write_text(text)
            write_node_bundle(folder / "node.pem", "edge1", site.address)
            async with agent_process(config) as process:
                yield Rig(process, await accept_agent(site, nursery), target, config, ops)
            nursery.cancel_scope.cancel()


def agent_process(config: Path) -> AbstractAsyncContextManager[trio.Process]:
    return unread([*COMMAND, "run", "--config", str(config)], stderr=subprocess.DEVNULL)


async def run_command(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return await trio.run_process(
        [*COMMAND, *arguments], capture_stdout=True, capture_stderr=True, check=False
    )


async def test_an_attached_agent_serves_its_targets_its_page_and_its_probes(tmp_path: Path) -> None:
    async with running_agent(tmp_path) as rig:
        stream = await rig.open()
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        assert b"200 OK" in await rig.ask("/healthz")
        assert (await rig.ask("/readyz")).endswith(b"ready\n")
        metrics = await rig.ask("/metrics")
        assert b"qanat_sessions 1.0" in metrics
        assert b"qanat_link_cap_bytes_per_second 1e+08" in metrics
        page = await rig.ask("/")
        assert stream.id.encode() in page
        status = await run_command("status", "--json", "--config", str(rig.config))
        assert status.returncode == 0
        assert [shown["user"] for shown in json.loads(status.stdout)["streams"]] == ["kim"]
        text = (await run_command("status", "--config", str(rig.config))).stdout.decode()
        assert "link      attached" in text
        await stream.aclose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_sigterm_and_a_closed_terminal_let_a_stream_finish(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with running_agent(tmp_path) as rig:
        stream = await rig.open()
        rig.process.send_signal(number)
        await rig.wait_draining()
        await stream.send_all(b"last words")
        assert await stream.receive_some() == b"last words"
        await stream.send_eof()
        assert await stream.receive_some() == b" bye"
        assert await stream.receive_some() == b""
        await stream.aclose()
        assert await rig.process.wait() == 0
        assert (await rig.session.wait_ended())[0] is Reason.AGENT_STOPPING


async def test_sigterm_resets_what_does_not_finish_in_time(tmp_path: Path) -> None:
    async with running_agent(tmp_path, drain_seconds=0.2) as rig:
        stream = await rig.open()
        rig.process.send_signal(signal.SIGTERM)
        with pytest.raises(StreamReset) as caught:
            await stream.receive_some()
        assert caught.value.reason is Reason.AGENT_STOPPING
        await stream.aclose()
        assert await rig.process.wait() == 0


async def test_sigint_ends_at_once_and_sends_bye(tmp_path: Path) -> None:
    async with running_agent(tmp_path, drain_seconds=600) as rig:
        stream = await rig.open()
        rig.process.send_signal(signal.SIGINT)
        assert (await rig.session.wait_ended())[0] is Reason.AGENT_STOPPING
        await stream.aclose()
        assert await rig.process.wait() == 0


async def test_a_second_signal_forces(tmp_path: Path) -> None:
    async with running_agent(tmp_path, drain_seconds=600) as rig:
        stream = await rig.open()
        rig.process.send_signal(signal.SIGTERM)
        await rig.wait_draining()
        rig.process.send_signal(signal.SIGTERM)
        assert await rig.process.wait() == 0
        await stream.aclose()


async def test_an_agent_without_a_server_logs_that_and_stops_at_once(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "agent.toml").write_text(f'[ops]\nlisten = "127.0.0.1:{port}"\n')
    write_node_bundle(tmp_path / "node.pem", "edge1", "127.0.0.1:1")
    with trio.fail_after(20):
        async with agent_process(tmp_path / "agent.toml") as process:
            while (status := await _status_of(tmp_path / "agent.toml"))[0] == 1:
                pass  # not listening yet
            assert status[0] == 4
            assert status[1]["phase"] in {"connecting", "waiting"}
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0


async def _status_of(config: Path) -> tuple[int, dict[str, object]]:
    result = await run_command("status", "--json", "--config", str(config))
    return result.returncode, json.loads(result.stdout)


async def test_commands_that_cannot_do_their_work_name_the_cause(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("servres = []\n")
    bad = await run_command("run", "--config", str(tmp_path / "bad.toml"))
    assert (bad.returncode, b"did you mean servers?" in bad.stderr) == (2, True)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        (tmp_path / "agent.toml").write_text(f'[ops]\nlisten = "127.0.0.1:{port}"\n')
        write_node_bundle(tmp_path / "node.pem", "edge1", "127.0.0.1:1")
        taken = await run_command("run", "--config", str(tmp_path / "agent.toml"))
    assert (taken.returncode, taken.stderr.count(b"\n")) == (1, 1)
    assert b"cannot listen on 127.0.0.1" in taken.stderr
    silent = await run_command("status", "--config", str(tmp_path / "agent.toml"))
    assert silent.returncode == 1
    assert b"no agent answers at" in silent.stderr


async def test_check_and_version_print_json(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("")
    checked = await run_command("check", "--json", "--config", str(tmp_path / "agent.toml"))
    assert checked.returncode == 2
    report = json.loads(checked.stdout)
    assert (report["ok"], report["findings"][0]["verdict"]) == (False, "fail")
    version = await run_command("version", "--json")
    assert "grpcio" in json.loads(version.stdout)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "is it another program?"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "the listener answered 404 Not Found"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "the program that answers there is not an agent"),
    ],
)
async def test_status_names_what_answers_instead_of_an_agent(
    tmp_path: Path, answer: bytes, sentence: str
) -> None:
    async def other(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)

    async with listening(other) as address:
        (tmp_path / "agent.toml").write_text(f'[ops]\nlisten = "{address}"\n')
        ran = await run_command("status", "--config", str(tmp_path / "agent.toml"))
    assert ran.returncode == 1
    assert sentence in ran.stderr.decode()
    assert "start one" not in ran.stderr.decode()


async def test_status_without_its_token_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text('[ops]\nbearer_file = "token"\n')
    ran = await run_command("status", "--config", str(tmp_path / "agent.toml"))
    assert (ran.returncode, ran.stderr.count(b"\n")) == (2, 1)
    assert b"token cannot be read: No such file" in ran.stderr
