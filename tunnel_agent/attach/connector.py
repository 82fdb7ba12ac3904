"""From a server's address to a link that stays: proxy, carrier, the attach's steps, resumption, route."""

from __future__ import annotations

import functools
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from certs.bundle import Bundle
from tunnel_agent.attach.failover import SessionFailover
from tunnel_agent.config import SOFTWARE
from tunnel_agent.installation import Installation
from tunnel_agent.network.proxy import Proxy, ProxyError
from tunnel_agent.network.proxy_choice import ProxyChoice
from tunnel_agent.network.resolver import Resolve, resolve_server
from tunnel_agent.network.route_watcher import RouteWatcher
from tunnel_core.carrier.asyncio_bridge import Bridge
from tunnel_core.carrier.grpc_client import dial_carrier
from tunnel_core.carrier.interface import Carrier, CarrierFailed, DialSettings
from tunnel_core.congestion.token_bucket import TokenBucket
from tunnel_core.limits import Limits
from tunnel_core.mux.credit import CreditPool, SendPool
from tunnel_core.names import split_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import VERSION, AgentHandshake
from tunnel_core.session.profiles import ProfileName, profile_of
from tunnel_core.session.session import Session
from tunnel_core.session.state import SessionEvent
from tunnel_core.streams.tunnel_stream import TunnelStream
from tunnel_core.wire.frames import Hello, Service, SessionSecret, Welcome

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LEAST_DIAL_SECONDS = 0.1
"""What a look-up that took nearly all of the time leaves to the dial."""
_PROBE_SECONDS, _PROBE_PAUSE_SECONDS = 15.0, 1.0
"""A probe that comes too early for the node's budget waits at most so long: one attach is due every 5 s."""
_LEAST_ANSWER_SECONDS, _ANSWER_DIALS = 3.0, 4.0
"""Time for which a hello waits for its answer. The dial before it took three round trips, so four times the
dial are twelve. A path that broke since then must not hold one of the two attempts for longer."""


@dataclass(slots=True)
class Connector:
    """Makes links to servers for one node.

    ``on_open`` hears of each stream that a server opens; for ``on_state_change`` see ``SessionFailover``.
    Whoever keeps links runs ``route``, so that a changed way is noticed at once.
    """

    bridge: Bridge
    bundle: Bundle
    proxy: ProxyChoice
    limits: Limits
    connect_timeout_seconds: float
    services: tuple[Service, ...]
    on_open: Callable[[TunnelStream], None]
    on_state_change: Callable[[SessionEvent | None], None]
    on_roots: Callable[[bytes, Bundle], Bundle] = lambda told, bundle: bundle
    """Gets the roots (PEM) that a server tells in its welcome, and the bundle. Returns the bundle for the
    next attaches. Must not block or raise."""
    max_wait_seconds: float = 30.0
    metered: bool = False
    cap: TokenBucket | None = None
    """Of what the agent sends, over all its sessions; the server is asked to keep to the same rate."""
    resolve: Resolve = resolve_server
    """Looks up servers and proxies, anew for each attempt."""
    route: RouteWatcher = field(init=False)
    pool: CreditPool = field(init=False)
    send_pool: SendPool = field(init=False)
    _failover: SessionFailover | None = field(init=False, default=None)
    _offered: Attachment | None = field(init=False, default=None)
    _instance: bytes = field(init=False, default_factory=lambda: secrets.token_bytes(16))
    _number: int = field(init=False, default=0)
    _reached: Sequence[str] = field(init=False, default=())
    """The addresses of the first hop of the newest carrier: one of them is its peer's."""

    def __post_init__(self) -> None:
        self.pool = CreditPool(self.limits.credit_pool)
        self.send_pool = SendPool(self.limits.send_pool)
        self.route = RouteWatcher(self._route_changed)

    def _route_changed(self) -> None:
        if self._failover is not None:
            self._failover.route_changed()

    def use_bundle(self, bundle: Bundle) -> None:
        """Attaches go by this bundle from now on; a session moves to a carrier that shows its certificate."""
        is_fresh, self.bundle = bundle.chain_pem != self.bundle.chain_pem, bundle
        if is_fresh and self._failover is not None:
            self._failover.refresh()

    @asynccontextmanager
    async def open_link(self, server: str) -> AsyncIterator[Session]:
        """Attaches to ``server`` and yields the link, which lives until the block ends.

        While it lives, its lost carriers are replaced. Raises ``Refused`` if the server cannot be attached
        to.
        """
        link = self._begin_offered(server) or await self._begin(server)
        attach = functools.partial(self._attempt, server, link)
        self._failover = resumer = SessionFailover(
            link,
            attach,
            response_timeout_seconds=self.connect_timeout_seconds,
            max_wait_seconds=self.max_wait_seconds,
            on_state_change=self.on_state_change,
            on_carried=self._watch_way,
            attempt_seconds=profile_of(metered=self.metered).attempt_seconds,
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.run)
                nursery.start_soon(resumer.run)
                yield link
                link.end(Reason.AGENT_STOPPING)
        finally:
            self._failover, self._offered = None, resumer.offered

    async def _begin(self, server: str) -> Session:
        """A new session on a carrier of its own. Raises ``Refused``."""
        attempt = await self._attempt(server, None, self.connect_timeout_seconds)
        return self._use(attempt)

    def _begin_offered(self, server: str) -> Session | None:
        """A new session on the carrier on which this server said that it does not know the old one."""
        attempt, self._offered = self._offered, None
        if attempt is None:
            return None
        try:
            if attempt.peer_address == server:
                return self._use(attempt)
        except Refused:  # it broke, or the server's patience ended
            pass
        attempt.abandon()
        return None

    def _use(self, attempt: Attachment) -> Session:
        link = self._make_link(attempt)
        attempt.use(link)
        return link

    async def probe(self, server: str) -> Welcome:
        """Attach up to the server's welcome, so that a running agent of the same node keeps its session.

        Ask again where the node has attached too often lately, as a running agent does. Raises ``Refused``.
        """
        give_up = trio.current_time() + _PROBE_SECONDS
        while True:
            try:
                attempt = await self._attempt(server, None, self.connect_timeout_seconds)
            except Refused as refused:
                is_early = refused.reason is Reason.TOO_MANY_ATTACHES
                if not is_early or trio.current_time() + _PROBE_PAUSE_SECONDS > give_up:
                    raise
                await trio.sleep(_PROBE_PAUSE_SECONDS)
            else:
                attempt.abandon()
                return attempt.welcome

    async def _attempt(
        self,
        server: str,
        link: Session | None,
        response_timeout_seconds: float,
        connected: Callable[[], bool] = lambda: False,
        decide: Callable[[Attachment], None] | None = None,
    ) -> Attachment:
        """A new carrier to ``server``, welcomed for a new session or for that of ``link``; see ``Attach``.

        Raises ``Refused``. Cancelled, it leaves no carrier behind.
        """
        proxy = self._proxy_for(server)
        host, _ = split_host_port(proxy.address if proxy else server)
        deadline = trio.current_time() + response_timeout_seconds
        addresses = await self._look_up(host, response_timeout_seconds)
        began = trio.current_time()
        carrier = await self._dial(server, proxy, addresses, deadline)
        took = trio.current_time() - began
        self._reached = addresses
        self._number += 1
        use = connected()
        attempt = Attachment(carrier, AgentHandshake(self._hello(self._number, link, use=use)), decide)
        answer_seconds = max(_LEAST_ANSWER_SECONDS, _ANSWER_DIALS * took)
        await attempt.settle(
            min(self.limits.attach_timeout_seconds, response_timeout_seconds, answer_seconds)
        )
        if attempt.welcome.trust_bundle:
            self.bundle = self.on_roots(attempt.welcome.trust_bundle, self.bundle)
        return attempt

    async def _watch_way(self) -> None:
        self.route.watch(self._reached)

    def _make_link(self, attempt: Attachment) -> Session:
        assert attempt.steps.hello is not None
        return Session(
            attempt.steps.hello,
            attempt.welcome,
            opener=False,
            node=self.bundle.identity.name,
            limits=self.limits,
            pool=self.pool,
            send_pool=self.send_pool,
            cap=self.cap,
            on_open=self.on_open,
        )

    async def _look_up(self, host: str, response_timeout_seconds: float) -> Sequence[str]:
        try:
            with trio.fail_after(response_timeout_seconds):
                return await self.resolve(host)
        except trio.TooSlowError as error:
            why = f"resolving {host} took longer than {response_timeout_seconds:g} s"
            raise Refused(Reason.CARRIER_LOST, why) from error
        except OSError as error:
            why = f"{host} cannot be resolved: {error.strerror}"
            raise Refused(Reason.CARRIER_LOST, why) from error

    async def _dial(
        self, server: str, proxy: Proxy | None, addresses: Sequence[str], deadline: float
    ) -> Carrier:
        """Over all ``addresses`` of the server, which gRPC races, or over those of the proxy in turn."""
        settings = DialSettings(
            server=server,
            roots_pem=self.bundle.roots_pem,
            key_pem=self.bundle.key_pem,
            chain_pem=self.bundle.chain_pem,
            addresses=addresses,
        )
        hops = [replace(proxy, host=address).url for address in addresses] if proxy else [""]
        failures: list[CarrierFailed] = []
        for tried, url in enumerate(hops):
            seconds = max(_LEAST_DIAL_SECONDS, (deadline - trio.current_time()) / (len(hops) - tried))
            hop = replace(settings, proxy_url=url, connect_timeout_seconds=seconds)
            try:
                return await dial_carrier(self.bridge, hop, self.limits)
            except CarrierFailed as error:
                failures.append(error)
        raise Refused(Reason.CARRIER_LOST, failures[0].detail) from failures[0]

    def _proxy_for(self, server: str) -> Proxy | None:
        try:
            return self.proxy.proxy_for(server)
        except ProxyError as error:
            raise Refused(Reason.CARRIER_LOST, str(error)) from error

    def _hello(self, number: int, link: Session | None, *, use: bool) -> Hello:
        return Hello(
            version=VERSION,
            attempt=number,
            instance=self._instance,
            boot=_boot_id(),
            software=SOFTWARE,
            session=link.welcome.session if link else b"",
            secret=link.welcome.secret if link else SessionSecret(),
            have=link.received if link else 0,
            services=self.services,
            initial_credit=self.limits.initial_credit,
            metered=self.metered,
            max_bytes_per_second=self.cap.rate if self.cap else 0,
            use=use,
        )


def connector_of(
    installation: Installation,
    bridge: Bridge,
    on_open: Callable[[TunnelStream], None],
    on_state_change: Callable[[SessionEvent | None], None],
    on_roots: Callable[[bytes, Bundle], Bundle] = lambda told, bundle: bundle,
    cap: TokenBucket | None = None,
) -> Connector:
    """Return what attaches ``installation``; for the callbacks see ``Connector``."""
    session = installation.config.session
    return Connector(
        bridge=bridge,
        bundle=installation.bundle,
        proxy=installation.proxy,
        limits=Limits(attach_timeout_seconds=session.attach_timeout_seconds),
        connect_timeout_seconds=session.connect_timeout_seconds,
        services=installation.services,
        on_open=on_open,
        on_state_change=on_state_change,
        on_roots=on_roots,
        max_wait_seconds=session.retry_max_seconds,
        metered=installation.config.link.profile is ProfileName.METERED,
        cap=cap,
    )


def _boot_id() -> bytes:
    """The kernel's name for this boot; empty where there is none to read."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return b""
