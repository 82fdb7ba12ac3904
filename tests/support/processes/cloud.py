"""A complete ``qanat-server`` as ``init`` makes it, and machines that join: real processes, free ports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import trio

from certs.token import parse_token
from tests.support.processes.servers import AGENT, SERVER
from tunnel_server.commands.server_client import ask_server


@dataclass
class Cloud:
    """A server. ``settings`` replaces values that are commented out in server.toml; ``extra`` is appended."""

    folder: Path
    settings: dict[str, float]
    extra: str = ""
    ready: Mapping[str, Any] = field(default_factory=dict)
    https: str = ""
    agents: str = ""

    @property
    def config(self) -> Path:
        return self.folder / "server.toml"

    def make(self) -> None:
        command = [*SERVER, "init", "--name", "localhost", "--data-dir", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)  # noqa: S603
        text = re.sub(r'"(.*):70\d\d"', '"127.0.0.1:0"', self.config.read_text())
        for key, value in self.settings.items():
            text, count = re.subn(rf"^# {key} = \S+", f"{key} = {value}", text, flags=re.MULTILINE)
            assert count == 1, key
        self.config.write_text(text + self.extra)

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run the server, and kill it at the end. It keeps its ports, because nodes remember them."""
        log = self.folder / "log"
        with log.open("wb") as errors:
            command = [*SERVER, "run", "--config", str(self.config)]
            process = subprocess.Popen(command, stderr=errors)  # noqa: S603
        try:
            self.ready = ready = self._wait_ready(process, log)
            self.https = f"localhost:{ready['https'].rpartition(':')[2]}"
            self.agents = ready["agents"]
            self._keep_ports(ready)
            yield process
        finally:
            process.kill()
            process.wait()

    def _wait_ready(self, process: subprocess.Popen[bytes], log: Path) -> Mapping[str, Any]:
        for _ in range(1000):
            for line in log.read_text().splitlines():
                if '"ready"' in line:
                    ready: Mapping[str, Any] = json.loads(line)
                    return ready
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        raise AssertionError(log.read_text())

    def _keep_ports(self, ready: Mapping[str, Any]) -> None:
        text = self.config.read_text()
        for name in ("agents", "https"):
            text = re.sub(rf"(\[{name}\][^\n]*\nlisten = )\[.*\]", rf'\1["{ready[name]}"]', text)
        self.config.write_text(text)

    def log(self) -> str:
        """Return the server's log so far."""
        return (self.folder / "log").read_text()

    async def act(self, method: str, path: str, **arguments: object) -> dict[str, Any]:
        """Send a request of an administrator, and return the answer."""
        return await ask_server(self.folder / "admin.sock", method, path, arguments)

    async def token(self, node: str = "edge1", **more: object) -> str:
        whom = {"node": node} if node else {}
        return str((await self.act("POST", "tokens/create", **whom, **more))["token"])

    async def uses(self, token: str) -> int:
        listed = (await self.act("GET", "tokens"))["tokens"]
        return next(int(one["used"]) for one in listed if one["id"] == parse_token(token).id)


@contextmanager
def open_cloud(folder: Path, extra: str = "", **settings: float) -> Iterator[Cloud]:
    cloud = Cloud(folder / "cloud", settings, extra)
    cloud.make()
    with cloud.serving():
        yield cloud


@dataclass
class Machine:
    """A machine that joins as a node. Its agent's files are in ``folder``."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "agent.toml"

    @property
    def bundle(self) -> Path:
        return self.folder / "node.pem"

    def command(self, *arguments: str) -> list[str]:
        return [*AGENT, *arguments, "--config", str(self.config)]

    async def run(self, *arguments: str, stdin: str = "") -> CompletedProcess[bytes]:
        return await trio.run_process(
            self.command(*arguments),
            stdin=stdin.encode(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, **self.environment},
        )

    async def join(self, server: str, token: str, *options: str) -> Outcome:
        ran = await self.run("join", server, *options, "--json", stdin=token)
        assert ran.stdout, ran.stderr
        return Outcome(ran.returncode, json.loads(ran.stdout))


@dataclass
class Outcome:
    """The result of a join with ``--json``."""

    code: int
    report: dict[str, Any]

    @property
    def failure(self) -> dict[str, Any]:
        """The failed check. It is the last one, and no check before it failed."""
        findings = self.report["findings"]
        assert [one["verdict"] for one in findings[:-1]].count("fail") == 0, findings
        assert findings[-1]["verdict"] == "fail", findings
        return dict(findings[-1])


def machine(folder: Path, name: str = "edge", **environment: str) -> Machine:
    place = folder / name
    place.mkdir(exist_ok=True)
    return Machine(place, environment)
