"""Two links over a real gRPC call with mTLS on loopback: as ``memory_link``, with everything below."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.fakes.memory_link import LinkPair, attach_links
from tests.fakes.pki import node_leaf, server_leaf
from tunnel_core.bridge import open_bridge
from tunnel_core.carrier import Carrier, DialSettings, ServerTls
from tunnel_core.grpc_carrier import dial_carrier, serve_carriers
from tunnel_core.limits import Limits


@asynccontextmanager
async def grpc_links(limits: Limits | None = None) -> AsyncIterator[LinkPair]:
    """Attached links; given up at the end of the block."""
    limits = limits or Limits()
    server, node = server_leaf(), node_leaf("edge1")
    tls = ServerTls(server.credential.key_pem, server.chain_pem, server.roots_pem)
    send, receive = trio.open_memory_channel[Carrier](1)
    async with (
        open_bridge() as bridge,
        serve_carriers(
            bridge, listen=["127.0.0.1:0"], tls=tls, on_carrier=send.send_nowait, limits=limits
        ) as site,
        trio.open_nursery() as nursery,
    ):
        address = site.addresses[0].replace("127.0.0.1", "localhost")
        settings = DialSettings(
            address,
            node.roots_pem,
            node.credential.key_pem,
            node.chain_pem,
            addresses=("127.0.0.1",),
        )
        agent_end = await dial_carrier(bridge, settings, limits)
        yield await attach_links(nursery, await receive.receive(), agent_end, limits)
        nursery.cancel_scope.cancel()
