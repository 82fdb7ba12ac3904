"""A whole ``qanat-server`` as ``init`` makes it, and machines that join it: real processes, free ports."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import trio

from tests.server.programs import AGENT, SERVER, Program, running


@dataclass
class Cloud:
    """``settings`` are keys that stand commented out in server.toml, with other values."""

    folder: Path
    settings: dict[str, float]
    https: str = ""
    ready: Mapping[str, Any] = field(default_factory=dict)
    program: Program | None = None

    @property
    def config(self) -> Path:
        return self.folder / "cloud" / "server.toml"

    async def make(self) -> None:
        await self._run("init", "--name", "localhost", "--data-dir", str(self.config.parent))
        text = re.sub(r'"(.*):70\d\d"', '"127.0.0.1:0"', self.config.read_text())
        for key, value in self.settings.items():
            text, count = re.subn(rf"^# {key} = \S+", f"{key} = {value}", text, flags=re.MULTILINE)
            assert count == 1, key
        self.config.write_text(text)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Program]:
        """The same ports when it is served again, since nodes remember them."""
        async with running([*SERVER, "run", "--config", str(self.config)]) as program:
            self.ready = await program.line("ready")
            self.https = f"localhost:{self.ready['https'].rpartition(':')[2]}"
            self._keep_ports()
            self.program = program
            yield program

    def _keep_ports(self) -> None:
        text = self.config.read_text()
        for name in ("agents", "https"):
            text = re.sub(rf"(\[{name}\][^\n]*\nlisten = )\[.*\]", rf'\1["{self.ready[name]}"]', text)
        self.config.write_text(text)

    async def token(self, node: str = "edge1", *options: str) -> str:
        which = ["--node", node] if node else []
        made = await self._run("token", "create", *which, *options, "--config", str(self.config), "--json")
        return str(json.loads(made)["token"])

    async def show(self, *command: str) -> Any:
        return json.loads(await self._run(*command, "--config", str(self.config), "--json"))

    async def _run(self, *arguments: str) -> bytes:
        command = [*SERVER, *arguments]
        ran = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        assert ran.returncode == 0, (arguments, ran.stdout, ran.stderr)
        return bytes(ran.stdout)


@dataclass
class Machine:
    """One to be a node: its agent's files lie in ``folder``."""

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
    """What a join with ``--json`` said."""

    code: int
    said: dict[str, Any]

    @property
    def failure(self) -> dict[str, Any]:
        """The finding that failed; it is the last one, and those before it did not."""
        findings = self.said["findings"]
        assert [one["verdict"] for one in findings[:-1]].count("fail") == 0, findings
        assert findings[-1]["verdict"] == "fail", findings
        return dict(findings[-1])


@asynccontextmanager
async def open_cloud(folder: Path, **settings: float) -> AsyncIterator[Cloud]:
    cloud = Cloud(folder, settings)
    with trio.fail_after(60):
        await cloud.make()
        async with cloud.serving():
            yield cloud


def machine(folder: Path, name: str = "edge", **environment: str) -> Machine:
    place = folder / name
    place.mkdir(exist_ok=True)
    return Machine(place, environment)
