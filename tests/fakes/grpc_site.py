"""A bridge, a server of carriers and an agent that dials it, in one process with real TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from certs.ca import Leaf
from tests.fakes import pki
from tests.fakes.recording_port import RecordingPort
from tunnel_core.bridge import Bridge, open_bridge
from tunnel_core.carrier import Carrier, DialSettings, ServerTls
from tunnel_core.grpc_carrier import CarrierServer, dial_carrier, serve_carriers
from tunnel_core.limits import Limits

LOOPBACK = ("127.0.0.1:0",)


def server_tls(leaf: Leaf | None = None, roots_pem: bytes = b"") -> ServerTls:
    leaf = leaf or pki.server_leaf()
    return ServerTls(leaf.credential.key_pem, leaf.chain_pem, roots_pem or leaf.roots_pem)


class Site:
    """Made by :func:`open_site`."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.server: CarrierServer
        self._accept, self._accepted = trio.open_memory_channel[Carrier](1000)

    @property
    def address(self) -> str:
        return self.server.addresses[0]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def settings(self, leaf: Leaf | None = None, **settings: Any) -> DialSettings:
        leaf = leaf or pki.node_leaf("edge-1")
        values: dict[str, Any] = {
            "server": self.address,
            "roots_pem": leaf.roots_pem,
            "key_pem": leaf.credential.key_pem,
            "chain_pem": leaf.chain_pem,
            "connect_timeout_seconds": 5.0,
        }
        return DialSettings(**(values | settings))

    async def dial(self, leaf: Leaf | None = None, **settings: Any) -> Carrier:
        return await dial_carrier(self.bridge, self.settings(leaf, **settings))

    async def accept(self) -> Carrier:
        with trio.fail_after(5):
            return await self._accepted.receive()

    async def connect(self, **settings: Any) -> tuple[RecordingPort, RecordingPort]:
        """A started carrier: the agent's port and the server's."""
        agent = await self.dial(**settings)
        return RecordingPort(agent), RecordingPort(await self.accept())

    def take(self, carrier: Carrier) -> None:
        self._accept.send_nowait(carrier)


@asynccontextmanager
async def open_site(
    *,
    listen: Sequence[str] = LOOPBACK,
    tls: ServerTls | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> AsyncIterator[Site]:
    async with open_bridge() as bridge:
        site = Site(bridge)
        with site._accept, site._accepted:
            async with serve_carriers(
                bridge,
                listen=listen,
                tls=tls or server_tls(),
                on_carrier=site.take,
                limits=limits or Limits(),
                **options,
            ) as site.server:
                yield site
