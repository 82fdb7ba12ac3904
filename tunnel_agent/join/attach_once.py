"""Attach once, up to the server's welcome, so that a running agent of the node keeps its session."""

from __future__ import annotations

from pathlib import Path

import trio

from tunnel_agent.attach.connector import connector_of
from tunnel_agent.checks import CheckFailed
from tunnel_agent.installation import load_installation
from tunnel_core.carrier.asyncio_bridge import open_bridge
from tunnel_core.config import paths
from tunnel_core.config.loader import ConfigError
from tunnel_core.humanize import as_milliseconds
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tunnel_stream import TunnelStream


async def attach_once(config: Path, bundle: Path) -> str:
    """Try the servers in their order up to the first welcome; return a sentence. Raises ``CheckFailed``."""
    named = paths.config_argument(config, paths.agent_config_file())
    fix = f"`qanat-agent check{named}` shows which step fails"
    try:
        installation = load_installation(config, bundle)
    except ConfigError as error:
        raise CheckFailed(str(error), fix) from None
    failures: list[str] = []
    async with open_bridge() as bridge:
        connector = connector_of(installation, bridge, _refuse, on_state_change=lambda _: None)
        for server in installation.servers:
            start = trio.current_time()
            try:
                software = (await connector.probe(server)).software
            except Refused as refused:
                failures.append(f"{server}: {refused.detail}")
                continue
            duration = as_milliseconds(trio.current_time() - start)
            return f"welcomed as node {installation.node} by {software} at {server} in {duration}"
    raise CheckFailed("; ".join(failures), fix)


def _refuse(stream: TunnelStream) -> None:
    stream.refuse(Reason.AGENT_STOPPING, "this attach is only a test")  # a server sends no stream to a probe
