"""Many whole agents in one process: each joins with a token as ``join`` does, then runs as ``run`` does.

``python -m tests.e2e.identity.village HTTPS TARGET FOLDER NAME...`` with the token on standard input. It
prints one line when all have joined, and keeps running. The agents share only the process, also for
renewals, which would otherwise cost half a second of a processor each. Each agent has its own files,
session and dates.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import trio

from tunnel_agent.app import Agent
from tunnel_agent.certificate import renewal_loop as renewal
from tunnel_agent.certificate.node_places import Files
from tunnel_agent.certificate.renew import renew
from tunnel_agent.checks import CheckFailed
from tunnel_agent.config import AgentConfig
from tunnel_agent.installation import load_installation
from tunnel_agent.join.config_text import config_text
from tunnel_agent.join.join import Joining
from tunnel_agent.join.request import JoinRequest
from tunnel_agent.network.proxy_choice import ProxyChoice
from tunnel_core.carrier.asyncio_bridge import open_bridge
from tunnel_core.config.loader import Source, parse
from tunnel_core.config.types import Log, LogFormat
from tunnel_core.reasons import Refused
from tunnel_core.telemetry import logs

SETTINGS = '\n[ops]\nlisten = ""\n\n[session]\nretry_max_seconds = 2\n'


async def main(server: str, target: str, folder: str, *names: str) -> None:
    token = sys.stdin.readline()
    homes = [Path(folder) / name for name in names]
    for home in homes:
        home.mkdir()
        await _join(server, target, home, token)
    sys.stdout.write("joined\n")
    sys.stdout.flush()
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        for home in homes:
            await Agent(load_installation(home / "agent.toml"), bridge, nursery).start()


async def _join(server: str, target: str, home: Path, token: str) -> None:
    file, bundle = home / "agent.toml", home / "node.pem"
    request = JoinRequest(server, home.name, allow=(target,))
    config = parse(tomllib.loads(config_text(request, str(bundle))), AgentConfig, Source(file, home))
    output: list[object] = []
    joining = Joining(
        request, Files(file, bundle), config, ProxyChoice(), output.append, lambda: token,
        lambda: datetime.now(UTC), host=home.name, again=False,
    )  # fmt: skip
    joined = await joining.run()
    assert joined.bundle is not None, output
    file.write_text(file.read_text() + SETTINGS)


async def _renew_here(command: Sequence[str]) -> tuple[str, str]:
    """In place of ``qanat-agent renew``, with its arguments."""
    try:
        await renew(load_installation(Path(command[command.index("--config") + 1])))
    except (CheckFailed, Refused) as error:
        return error.detail, ""
    return "", ""


if __name__ == "__main__":
    renewal._run = _renew_here
    logs.setup(Log().level, LogFormat.TEXT)
    trio.run(main, *sys.argv[1:])
