"""From a server's address to a link: proxy, carrier, the attach's steps. Each call is one attempt."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from certs.bundle import Bundle
from tunnel_agent.proxy import Proxy, ProxyError, choose_proxy
from tunnel_core import __version__
from tunnel_core.bridge import Bridge
from tunnel_core.carrier import Carrier, CarrierFailed, DialSettings
from tunnel_core.credit import CreditPool
from tunnel_core.frames import Hello, Service
from tunnel_core.grpc_carrier import dial_carrier
from tunnel_core.limits import Limits
from tunnel_core.link import Link
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session import VERSION, AgentSteps
from tunnel_core.stream import Stream

SOFTWARE = f"qanat-agent/{__version__}"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class ProxyChoice:
    """What the configuration says about proxies; the environment is asked at each attempt."""

    proxy: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    no_proxy: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def proxy_for(self, server: str) -> Proxy | None:
        """The proxy that leads to ``server``, or None. Raises ``ProxyError``."""
        return choose_proxy(
            server,
            proxy=self.proxy,
            password=self.password,
            no_proxy=self.no_proxy,
            environment=self.environment,
        )


@dataclass(slots=True)
class Connector:
    """Makes links to servers for one node. ``on_open`` hears of each stream that a server opens."""

    bridge: Bridge
    bundle: Bundle
    proxy: ProxyChoice
    limits: Limits
    connect_timeout_seconds: float
    services: tuple[Service, ...]
    on_open: Callable[[Stream], None]
    pool: CreditPool = field(init=False)
    _instance: bytes = field(init=False, default_factory=lambda: secrets.token_bytes(16))
    _attempt: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.pool = CreditPool(self.limits.credit_pool)

    @asynccontextmanager
    async def open_link(self, server: str, *, probe: bool = False) -> AsyncIterator[Link]:
        """Attaches to ``server`` and yields the link, which lives until the block ends.

        With ``probe`` it stops at the welcome: the server moves no session to it, so a running agent
        of the same node keeps its own. Raises ``Refused`` if the server cannot be attached to.
        """
        carrier = await self._dial(server)
        link = Link(
            carrier,
            AgentSteps(self._hello(), probe=probe),
            node=self.bundle.identity.name,
            limits=self.limits,
            pool=self.pool,
            on_open=self.on_open,
        )
        refused: Refused | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            try:
                await link.wait_attached()
                yield link
            except Refused as error:  # out of the nursery, which would wrap it in a group
                refused = error
                nursery.cancel_scope.cancel()
            link.end(Reason.AGENT_STOPPING)
        if refused is not None:
            raise refused

    async def _dial(self, server: str) -> Carrier:
        try:
            proxy = self.proxy.proxy_for(server)
            settings = DialSettings(
                server=server,
                roots_pem=self.bundle.roots_pem,
                key_pem=self.bundle.key_pem,
                chain_pem=self.bundle.chain_pem,
                proxy_url=proxy.url if proxy else "",
                connect_timeout_seconds=self.connect_timeout_seconds,
            )
            return await dial_carrier(self.bridge, settings, self.limits)
        except ProxyError as error:
            raise Refused(Reason.CARRIER_LOST, str(error)) from error
        except CarrierFailed as error:
            raise Refused(Reason.CARRIER_LOST, error.detail) from error

    def _hello(self) -> Hello:
        self._attempt += 1
        return Hello(
            version=VERSION,
            attempt=self._attempt,
            instance=self._instance,
            boot=_boot_id(),
            software=SOFTWARE,
            services=self.services,
            initial_credit=self.limits.initial_credit,
        )


def _boot_id() -> bytes:
    """The kernel's name for this boot; empty where there is none to read."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return b""
