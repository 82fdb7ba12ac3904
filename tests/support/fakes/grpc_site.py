"""A server that accepts carriers and an agent that dials it, in one process with real TLS."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from certs.ca import Leaf
from tests.support.fakes.recording_port import RecordingPort
from tests.support.pki import authority as pki
from tunnel_core.carrier.asyncio_bridge import Bridge, open_bridge
from tunnel_core.carrier.grpc_client import dial_carrier
from tunnel_core.carrier.interface import Carrier, DialSettings, ServerTls
from tunnel_core.http.declining import decline_tls
from tunnel_core.http2.carrier import CarrierServer, serve_carriers
from tunnel_core.limits import Limits
from tunnel_core.reasons import Refused
from tunnel_server.entrances.agents import ALPN, ENTRANCE, AgentsEntrance
from tunnel_server.listeners.admission import Admission
from tunnel_server.listeners.listener import Listener, listen_tcp
from tunnel_server.listeners.tls import TlsContexts, TlsFiles, over_tls

LOOPBACK = ("127.0.0.1:0",)


def server_tls(leaf: Leaf | None = None, roots_pem: bytes = b"") -> ServerTls:
    leaf = leaf or pki.server_leaf()
    return ServerTls(leaf.credential.key_pem, leaf.chain_pem, roots_pem or leaf.roots_pem)


class Site:
    """The server and the means to dial it. Made by :func:`open_site`."""

    def __init__(self, bridge: Bridge, folder: Path, tls: ServerTls, min_tls_version: str) -> None:
        self.bridge = bridge
        self.listener: Listener
        self.server: CarrierServer
        self.on_carrier: Callable[[Carrier], None] = self._queue
        self.refused: list[Refused] = []
        """The refusals of connections that the listener refused or closed."""
        self._folder = folder
        self._accept, self._accepted = trio.open_memory_channel[Carrier](1000)
        self._write(tls)
        key, certificate, trust = (folder / name for name in ("key.pem", "chain.pem", "roots.pem"))
        self.contexts = TlsContexts(
            TlsFiles(certificate, key, trust, min_tls_version, alpn=ALPN, requires_certificate=True)
        )

    @property
    def addresses(self) -> list[str]:
        return self.listener.addresses

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def reload(self, tls: ServerTls) -> None:
        """Use this certificate and these roots for connections from now on."""
        self._write(tls)
        self.contexts.reload()

    def _write(self, tls: ServerTls) -> None:
        (self._folder / "key.pem").write_bytes(tls.key_pem)
        (self._folder / "chain.pem").write_bytes(tls.chain_pem)
        (self._folder / "roots.pem").write_bytes(tls.roots_pem)

    def stop_accepting(self) -> None:
        self.listener.stop_accepting()

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
        with trio.fail_after(20):
            return await self._accepted.receive()

    async def connect(self, **settings: Any) -> tuple[RecordingPort, RecordingPort]:
        """Return a started carrier: the agent's port and the server's."""
        agent = await self.dial(**settings)
        return RecordingPort(agent), RecordingPort(await self.accept())

    def take(self, carrier: Carrier) -> None:
        self.on_carrier(carrier)

    def _queue(self, carrier: Carrier) -> None:
        self._accept.send_nowait(carrier)


class _Reporter:
    def __init__(self, site: Site) -> None:
        self._site = site

    def refused(self, entrance: str, source: str, refused: Refused) -> None:
        self._site.refused.append(refused)


@asynccontextmanager
async def open_site(
    *,
    listen: Sequence[str] = LOOPBACK,
    tls: ServerTls | None = None,
    limits: Limits | None = None,
    min_tls_version: str = "1.3",
    handshake_seconds: float = 10.0,
    max_carriers: int = 10_000,
    admission: Admission | None = None,
) -> AsyncIterator[Site]:
    """Yield a running site. Raises what the body raises, without the nursery's exception group."""
    raised: list[BaseException] = []
    with tempfile.TemporaryDirectory() as folder:
        async with open_bridge() as bridge:
            site = Site(bridge, Path(folder), tls or server_tls(), min_tls_version)
            reporter = _Reporter(site)
            admission = admission or Admission(10_000, 1000, clock=trio.current_time)
            site.listener = await listen_tcp(ENTRANCE, listen, admission, reporter, decline_tls)
            async with trio.open_nursery() as nursery:
                with site._accept, site._accepted:
                    serving = serve_carriers(
                        on_carrier=site.take,
                        limits=limits or Limits(),
                        nursery=nursery,
                        max_carriers=max_carriers,
                    )
                    try:
                        async with serving as site.server:
                            entrance = AgentsEntrance(site.server, reporter)
                            handler = over_tls(
                                ENTRANCE, site.contexts, handshake_seconds, entrance.serve, reporter
                            )
                            await nursery.start(site.listener.serve, handler)
                            yield site
                    except Exception as error:
                        raised.append(error)
                nursery.cancel_scope.cancel()
        if raised:
            raise raised[0]
