"""Server and agent whose standard error and output have no reader, or are closed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from certs.bundle import write_bundle
from tests.agent.test_process import free_port
from tests.support.net.listening import echo, listening
from tests.support.pki import authority as pki
from tests.support.processes.servers import AGENT, SERVER, Site, tcp_port, unread
from tunnel_core.identity import Role

DEADLINE_SECONDS = 60
END_SECONDS = 10.0


class StoppedOutput:
    """A pipe for a program's output, read up to some line and then no more."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 4096)
        self.text = b""

    async def wait_line(self, words: str) -> dict[str, str]:
        while True:
            for line in self.text.splitlines():
                if words.encode() in line:
                    parsed: dict[str, str] = json.loads(line)
                    return parsed
            await trio.lowlevel.wait_readable(self._reading)
            self.text += os.read(self._reading, 65536)

    def stop(self) -> None:
        """Fill the pipe through another open file description, so that the program's stays blocking."""
        filling = os.open(f"/proc/self/fd/{self.writing}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            while True:
                os.write(filling, b"\n")
        except BlockingIOError:
            os.close(filling)

    def close(self) -> None:
        os.close(self._reading)
        os.close(self.writing)


@asynccontextmanager
async def program(
    command: Sequence[str], output: StoppedOutput, *, both: bool = True
) -> AsyncIterator[trio.Process]:
    process = await trio.lowlevel.open_process(
        command, stderr=output.writing, stdout=output.writing if both else subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def agent_command(site: Site, agents: str, allow: str, ops: str) -> list[str]:
    write_bundle(site.folder / "node.pem", pki.bundle_of(Role.NODE, "edge1", agents=(agents,)))
    config = site.folder / "agent.toml"
    config.write_text(f'allow = ["{allow}"]\n[log]\nlevel = "debug"\n[ops]\nlisten = "{ops}"\n')
    return [*AGENT, "run", "--config", str(config)]


async def ends(process: trio.Process, *signals: int) -> int:
    for number in signals:
        process.send_signal(number)
    with trio.fail_after(END_SECONDS):
        return await process.wait()


async def test_stopped_readers_stop_nothing_else(tmp_path: Path) -> None:
    logs = StoppedOutput(), StoppedOutput()
    with trio.fail_after(DEADLINE_SECONDS):
        async with listening(echo) as target:
            site = Site(tmp_path, tcp_port(target) + '[log]\nlevel = "debug"\n')
            site.write()
            run_server = [*SERVER, "run", "--config", str(site.config)]
            async with program(run_server, logs[0]) as server:
                site.ready = await logs[0].wait_line('"ready"')
                ops = f"127.0.0.1:{free_port()}"
                command = agent_command(site, site.ready["agents"], target, ops)
                async with program(command, logs[1]) as agent:
                    await logs[0].wait_line("node edge1 attached")
                    for log in logs:
                        log.stop()
                    for _ in range(50):
                        async with await site.through() as stream:
                            await stream.send_all(b"hello")
                            assert await stream.receive_some() == b"hello"
                    for where in ("", ops):
                        assert await site.page("/healthz", where) == (200, "ok\n")
                        assert "qanat_log_lines_dropped_total 0.0" in (await site.page("/metrics", where))[1]
                    assert (await site.ask("GET /api/v1/nodes"))[0] == 200
                    assert (await ends(agent, signal.SIGTERM), await ends(server, signal.SIGTERM)) == (0, 0)
    for log in logs:
        log.close()


async def test_queued_lines_are_written_when_the_reader_continues(tmp_path: Path) -> None:
    log = StoppedOutput()
    with trio.fail_after(DEADLINE_SECONDS):
        site = Site(tmp_path)
        site.write()
        async with program([*SERVER, "run", "--config", str(site.config)], log) as server:
            site.ready = await log.wait_line('"ready"')
            log.stop()
            server.send_signal(signal.SIGTERM)
            await log.wait_line('"drained"')
            assert await server.wait() == 0
    log.close()


REDIRECTIONS = ["2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1"]


@pytest.mark.parametrize("redirection", REDIRECTIONS)
async def test_programs_run_without_their_descriptors(tmp_path: Path, redirection: str) -> None:
    with trio.fail_after(DEADLINE_SECONDS):
        async with listening(echo) as target:
            port, agents, ops = free_port(), f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
            site = Site(tmp_path, tcp_port(target).replace(":0", f":{port}", 1))
            site.write()
            text = site.config.read_text().replace(
                '[agents]\nlisten = ["127.0.0.1:0"', f'[agents]\nlisten = ["{agents}"'
            )
            site.config.write_text(text.replace('[ops]\nlisten = "127.0.0.1:0"', f'[ops]\nlisten = "{ops}"'))
            site.ready = {"tcp": f"127.0.0.1:{port}", "ops": ops}
            agent_ops = f"127.0.0.1:{free_port()}"
            commands = [
                [*SERVER, "run", "--config", str(site.config)],
                agent_command(site, agents, target, agent_ops),
            ]
            async with (
                unlogged(commands[0], redirection) as server,
                unlogged(commands[1], redirection) as agent,
            ):
                await wait_ready(site, agent_ops)
                async with await site.through() as stream:
                    await stream.send_all(b"hello")
                    assert await stream.receive_some() == b"hello"
                assert (await ends(agent, signal.SIGTERM), await ends(server, signal.SIGTERM)) == (0, 0)


def unlogged(command: Sequence[str], redirection: str) -> AbstractAsyncContextManager[trio.Process]:
    """The program below a shell that redirects; the shell is replaced by it."""
    return unread(["sh", "-c", f'exec "$@" {redirection}', "sh", *command])


async def wait_ready(site: Site, ops: str) -> None:
    while True:
        try:
            if (await site.page("/readyz", ops))[0] == 200:
                return
        except OSError:
            pass  # not listening yet
        await trio.sleep(0.05)
