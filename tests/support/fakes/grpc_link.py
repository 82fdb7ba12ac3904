"""Two sessions over a real carrier with mTLS on loopback: as ``memory_link``, with every layer below."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.support.fakes.grpc_site import open_site
from tests.support.fakes.memory_link import LinkPair, attach_links
from tests.support.pki.authority import node_leaf
from tunnel_core.limits import Limits


@asynccontextmanager
async def grpc_links(limits: Limits | None = None) -> AsyncIterator[LinkPair]:
    """Yield attached sessions. They end with the block."""
    limits = limits or Limits()
    async with open_site(limits=limits) as site, trio.open_nursery() as nursery:
        name = site.address.replace("127.0.0.1", "localhost")
        agent_end = await site.dial(node_leaf("edge1"), server=name, addresses=("127.0.0.1",))
        yield await attach_links(nursery, await site.accept(), agent_end, limits)
        nursery.cancel_scope.cancel()
