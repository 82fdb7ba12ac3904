"""Attach to a server and keep the session: proxy, carrier, handshake, failover and route watching."""

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
from tunnel_agent.attach.path_probe import Hop
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
from tunnel_core.runtime.memory_limit import pool_bytes
from tunnel_core.session.attachment import Attachment
from tunnel_core.session.handshake import VERSION, AgentHandshake
from tunnel_core.session.profiles import ProfileName, profile_of
from tunnel_core.session.session import Session
from tunnel_core.session.state import SessionEvent
from tunnel_core.streams.tunnel_stream import TunnelStream
from tunnel_core.wire.frames import Hello, Service, SessionSecret, Welcome

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LEAST_DIAL_SECONDS = 0.1
"""Least time for the dial, also after a look-up that used nearly all of the connect timeout."""
_PROBE_SECONDS, _PROBE_PAUSE_SECONDS = 15.0, 1.0
"""How long a probe retries while the server refuses it with ``too_many_attaches``, and the pause between
two tries. The server's budget allows a node one attach every 5 s."""
_LEAST_ANSWER_SECONDS, _ANSWER_DIALS = 3.0, 4.0
"""Time for which a hello waits for its answer. The dial before it took three round trips, so four times the
dial are twelve. A path that broke since then must not hold one of the two attempts for longer."""


@dataclass(slots=True)
class Connector:
    """Opens sessions with servers for one node.

    ``on_open`` is called with each stream that a server opens; ``SessionFailover`` describes
    ``on_state_change``. A caller that keeps sessions runs ``route.run``, to notice a changed route at once.
    """

    bridge: Bridge
    bundle: Bundle
    proxy: ProxyChoice
    limits: Limits
    connect_timeout_seconds: float
    services: tuple[Service, ...]
    on_open: Callable[[TunnelStream], None]
    on_state_change: Callable[[SessionEvent | None], None]
    on_roots: Callable[[bytes, Bundle], Bundle] = lambda roots_pem, bundle: bundle
    """Called with the roots (PEM) of a server's welcome and the bundle. Returns the bundle for the next
    attaches. Must not block or raise."""
    max_wait_seconds: float = 30.0
    metered: bool = False
    cap: TokenBucket | None = None
    """Limits what the agent sends over all its sessions. The hello asks the server to keep to the rate."""
    resolve: Resolve = resolve_server
    """Looks up the names of servers and proxies; called for each attempt."""
    route: RouteWatcher = field(init=False)
    pool: CreditPool = field(init=False)
    send_pool: SendPool = field(init=False)
    _failover: SessionFailover | None = field(init=False, default=None)
    _offered: Attachment | None = field(init=False, default=None)
    _instance: bytes = field(init=False, default_factory=lambda: secrets.token_bytes(16))
    _attempt_number: int = field(init=False, default=0)
    _first_hops: Sequence[Hop] = field(init=False, default=())
    """Addresses of the first hop (server or proxy) of the newest carrier, one of them its peer's."""

    def __post_init__(self) -> None:
        self.pool = CreditPool(self.limits.credit_pool)
        self.send_pool = SendPool(self.limits.send_pool)
        self.route = RouteWatcher(self._route_changed)

    def _route_changed(self) -> None:
        if self._failover is not None:
            self._failover.route_changed()

    def use_bundle(self, bundle: Bundle) -> None:
        """Use ``bundle`` for the next attaches.

        If its certificate is a new one, the running session moves to a carrier that presents the new one.
        """
        is_new, self.bundle = bundle.chain_pem != self.bundle.chain_pem, bundle
        if is_new and self._failover is not None:
            self._failover.refresh()

    @asynccontextmanager
    async def open_session(self, server: str) -> AsyncIterator[Session]:
        """Attach to ``server`` (``host:port``) and yield the session, which ends with the block.

        Lost carriers are replaced meanwhile. Raises ``Refused`` if the attach fails. Cancelled during the
        attach, it leaves no carrier behind.
        """
        session = self._start_offered(server) or await self._start_new(server)
        attach = functools.partial(self._attach, server, session)
        self._failover = failover = SessionFailover(
            session,
            attach,
            response_timeout_seconds=self.connect_timeout_seconds,
            max_wait_seconds=self.max_wait_seconds,
            on_state_change=self.on_state_change,
            on_carried=self._watch_route,
            attempt_seconds=profile_of(metered=self.metered).attempt_seconds,
            hops=tuple if self.metered else lambda: self._first_hops,
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.run)
                nursery.start_soon(failover.run)
                yield session
                session.end(Reason.AGENT_STOPPING)
        finally:
            self._failover, self._offered = None, failover.offered

    async def _start_new(self, server: str) -> Session:
        """Start a session on a new carrier. Raises ``Refused``."""
        attachment = await self._attach(server, None, self.connect_timeout_seconds)
        return self._start_on(attachment)

    def _start_offered(self, server: str) -> Session | None:
        """Start the session that the server offered because it did not know the old one, if it did."""
        attachment, self._offered = self._offered, None
        if attachment is None:
            return None
        try:
            if attachment.peer_address == server:
                return self._start_on(attachment)
        except Refused:  # the carrier broke, or the server's attach timeout passed
            pass
        attachment.abandon()
        return None

    def _start_on(self, attachment: Attachment) -> Session:
        session = self._make_session(attachment)
        attachment.use(session)
        return session

    async def probe(self, server: str) -> Welcome:
        """Attach up to the server's welcome, so that a running agent of the same node keeps its session.

        Like a running agent, retry for 15 s if the node has attached too often lately. Raises ``Refused``.
        """
        give_up_at = trio.current_time() + _PROBE_SECONDS
        while True:
            try:
                attachment = await self._attach(server, None, self.connect_timeout_seconds)
            except Refused as refused:
                is_early = refused.reason is Reason.TOO_MANY_ATTACHES
                if not is_early or trio.current_time() + _PROBE_PAUSE_SECONDS > give_up_at:
                    raise
                await trio.sleep(_PROBE_PAUSE_SECONDS)
            else:
                attachment.abandon()
                return attachment.welcome

    async def _attach(
        self,
        server: str,
        session: Session | None,
        response_timeout_seconds: float,
        on_connected: Callable[[], bool] = lambda: False,
        decide: Callable[[Attachment], None] | None = None,
    ) -> Attachment:
        """Dial a carrier to ``server`` and attach it, for ``session`` or for a new one; see ``Attach``.

        Raises ``Refused``. Cancelled, it leaves no carrier behind.
        """
        proxy = self._proxy_for(server)
        host, port = split_host_port(proxy.address if proxy else server)
        deadline = trio.current_time() + response_timeout_seconds
        addresses = await self._resolve_host(host, response_timeout_seconds)
        dial_started_at = trio.current_time()
        carrier = await self._dial(server, proxy, addresses, deadline)
        dial_seconds = trio.current_time() - dial_started_at
        self._first_hops = [(address, port) for address in addresses]
        self._attempt_number += 1
        use = on_connected()
        hello = self._hello(self._attempt_number, session, use=use)
        attachment = Attachment(carrier, AgentHandshake(hello), decide)
        answer_seconds = max(_LEAST_ANSWER_SECONDS, _ANSWER_DIALS * dial_seconds)
        await attachment.settle(
            min(self.limits.attach_timeout_seconds, response_timeout_seconds, answer_seconds)
        )
        if attachment.welcome.trust_bundle:
            self.bundle = self.on_roots(attachment.welcome.trust_bundle, self.bundle)
        return attachment

    async def _watch_route(self) -> None:
        self.route.watch([address for address, _ in self._first_hops])

    def _make_session(self, attachment: Attachment) -> Session:
        assert attachment.handshake.hello is not None
        return Session(
            attachment.handshake.hello,
            attachment.welcome,
            opener=False,
            node=self.bundle.identity.name,
            limits=self.limits,
            pool=self.pool,
            send_pool=self.send_pool,
            cap=self.cap,
            on_open=self.on_open,
        )

    async def _resolve_host(self, host: str, response_timeout_seconds: float) -> Sequence[str]:
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
        """Dial the server at ``addresses``, which gRPC races, or the proxy at each of them in turn."""
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

    def _hello(self, attempt_number: int, session: Session | None, *, use: bool) -> Hello:
        return Hello(
            version=VERSION,
            attempt=attempt_number,
            instance=self._instance,
            boot=_boot_id(),
            software=SOFTWARE,
            session=session.welcome.session if session else b"",
            secret=session.welcome.secret if session else SessionSecret(),
            have=session.received if session else 0,
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
    on_roots: Callable[[bytes, Bundle], Bundle] = lambda roots_pem, bundle: bundle,
    cap: TokenBucket | None = None,
) -> Connector:
    """Return the connector of ``installation``; for the callbacks see ``Connector``."""
    session = installation.config.session
    pool = pool_bytes(session.pool_bytes)
    return Connector(
        bridge=bridge,
        bundle=installation.bundle,
        proxy=installation.proxy,
        limits=Limits(
            attach_timeout_seconds=session.attach_timeout_seconds, credit_pool=pool, send_pool=pool
        ),
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
    """Return the kernel's id of this boot, or no bytes if it cannot be read."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return b""
