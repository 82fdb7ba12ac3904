"""Many light agents in one process: each a real session over its own TLS connection, and nothing more.

`python -m bench.attachers FOLDER SERVER` attaches one agent for each bundle in FOLDER, prints a line
when all are attached, and stays. They answer and send pings like any agent; none has a target.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import trio

from certs.bundle import Bundle, read_bundle
from tunnel_core import __version__
from tunnel_core.bridge import Bridge, open_bridge
from tunnel_core.carrier import DialSettings
from tunnel_core.credit import CreditPool
from tunnel_core.frames import Hello
from tunnel_core.grpc_carrier import dial_carrier
from tunnel_core.limits import Limits
from tunnel_core.link import Link
from tunnel_core.session import VERSION, AgentSteps

_AT_ONCE = 16
"""Handshakes under way together: the server's queue, not ours, is not what is measured."""
_LIMITS = Limits()


async def attach_all(bundles: list[Path], server: str) -> None:
    pool = CreditPool(_LIMITS.credit_pool)
    turns = trio.CapacityLimiter(_AT_ONCE)
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        async with trio.open_nursery() as attaching:
            for path in bundles:
                attaching.start_soon(_attach, bridge, read_bundle(path), server, pool, turns, nursery)
        sys.stdout.write(json.dumps(len(bundles)) + "\n")
        sys.stdout.flush()
        await trio.sleep_forever()


async def _attach(
    bridge: Bridge,
    bundle: Bundle,
    server: str,
    pool: CreditPool,
    turns: trio.CapacityLimiter,
    nursery: trio.Nursery,
) -> None:
    settings = DialSettings(server, bundle.roots_pem, bundle.key_pem, bundle.chain_pem)
    async with turns:
        carrier = await dial_carrier(bridge, settings)
        node = bundle.identity.name
        link = Link(carrier, AgentSteps(_hello()), node=node, limits=_LIMITS, pool=pool)
        nursery.start_soon(_stay, link)
        await link.wait_attached()


async def _stay(link: Link) -> None:
    await link.run()
    raise SystemExit(f"{link.node} lost its session: {link.ended}")


def _hello() -> Hello:
    software = f"qanat-bench/{__version__}"
    instance, boot = os.urandom(16), os.urandom(16)
    return Hello(VERSION, 1, instance, boot, software, initial_credit=_LIMITS.initial_credit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("server")
    chosen = parser.parse_args()
    trio.run(attach_all, sorted(chosen.folder.glob("*.pem")), chosen.server)


if __name__ == "__main__":
    main()
