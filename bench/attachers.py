"""Many light agents in one process, each with a session over its own TLS connection.

`python -m bench.attachers FOLDER SERVER` attaches one agent for each bundle in FOLDER, prints a line
when all are attached, and keeps running. The agents attach, ping and resume like any agent. Each of their
targets is an echo.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

import trio

from certs.bundle import Bundle, read_bundle
from tunnel_agent.attach.connector import Connector
from tunnel_agent.network.proxy_choice import ProxyChoice
from tunnel_core.carrier.asyncio_bridge import Bridge, open_bridge
from tunnel_core.limits import Limits
from tunnel_core.streams.tunnel_stream import TunnelStream

_MAX_HANDSHAKES = 16
"""Limit of handshakes under way, because the bench does not measure the server's queue of handshakes."""
_CONNECT_SECONDS = 10.0
_PIECE_BYTES = 64 << 10


async def attach_all(bundles: list[Path], server: str) -> None:
    """Attach an agent for each bundle, print their number, and run until cancelled."""
    limiter = trio.CapacityLimiter(_MAX_HANDSHAKES)
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        async with trio.open_nursery() as attaching:
            for path in bundles:
                attaching.start_soon(_attach, bridge, read_bundle(path), server, limiter, nursery)
        sys.stdout.write(json.dumps(len(bundles)) + "\n")
        sys.stdout.flush()
        await trio.sleep_forever()


async def _attach(
    bridge: Bridge, bundle: Bundle, server: str, limiter: trio.CapacityLimiter, nursery: trio.Nursery
) -> None:
    connector = Connector(
        bridge,
        bundle,
        ProxyChoice(),
        Limits(),
        connect_timeout_seconds=_CONNECT_SECONDS,
        services=(),
        on_open=lambda stream: nursery.start_soon(echo, stream),
        on_state_change=lambda _: None,
    )
    async with limiter:
        await nursery.start(_stay, connector, server)


async def _stay(connector: Connector, server: str, task_status: trio.TaskStatus[None]) -> None:
    async with connector.open_session(server) as session:
        task_status.started()
        await session.wait_ended()
    raise SystemExit(f"{session.node} lost its session: {session.ended}")


async def echo(stream: TunnelStream) -> None:
    """Serve a stream as a target inside the agent: send back all data until the user ends the stream."""
    stream.accept("here")
    with contextlib.suppress(trio.BrokenResourceError):
        async with stream:
            while data := await stream.receive_some(_PIECE_BYTES):
                await stream.send_all(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("server")
    chosen = parser.parse_args()
    trio.run(attach_all, sorted(chosen.folder.glob("*.pem")), chosen.server)


if __name__ == "__main__":
    main()
