"""Opening of all entrances from the configuration: agents, https, the unix sockets, web and tcp."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import trio

from tunnel_core.config.types import ListenAddress
from tunnel_core.http.router import Section
from tunnel_core.http.server import HeadLimits
from tunnel_core.http2.carrier import CarrierServer, serve_carriers
from tunnel_server.access.opener import Opener
from tunnel_server.accounting.stream_records import StreamRecorder
from tunnel_server.admin.actions import Actions
from tunnel_server.api.admin import AdminEntrance
from tunnel_server.api.resources import ApiEntrance
from tunnel_server.api.server_facts import ServerFacts
from tunnel_server.auth.callers import Caller
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.auth.identify import (
    Identify,
    identify_by_certificate,
    identify_by_file_mode,
    identify_by_peer,
)
from tunnel_server.config import ServerConfig, Tcp
from tunnel_server.entrances.agents import ENTRANCE as AGENTS
from tunnel_server.entrances.agents import AgentsEntrance
from tunnel_server.entrances.connect import ENTRANCE as CONNECT
from tunnel_server.entrances.connect import ConnectEntrance
from tunnel_server.entrances.est import EstEntrance, PublicAddresses
from tunnel_server.entrances.https import HttpsEntrance
from tunnel_server.entrances.open_listeners import HTTPS, OpenListeners
from tunnel_server.entrances.tcp import ENTRANCE as TCP
from tunnel_server.entrances.tcp import TcpEntrance, TcpForward
from tunnel_server.entrances.web.entrance import ENTRANCE as WEB
from tunnel_server.entrances.web.entrance import WebEntrance, WebTls
from tunnel_server.entrances.web.login import CertificateLogin, Login, LoopbackLogin, ProxyLogin
from tunnel_server.entrances.web.proxies import TrustedProxies
from tunnel_server.events.subscribers import EventSubscribers
from tunnel_server.listeners.addresses import UnixAddress
from tunnel_server.listeners.listener import Handler
from tunnel_server.listeners.tls import over_tls
from tunnel_server.listeners.user_connections import UserConnections
from tunnel_server.nodes.attach import SessionAcceptor
from tunnel_server.nodes.registry import Nodes
from tunnel_server.pki.enrolment.enrolment import Enrolment, EnrolmentSettings
from tunnel_server.pki.public_addresses import advertised_names, bound_addresses
from tunnel_server.pki.reload import Reload, ServerAuthority, ServerCertificates
from tunnel_server.store.store import Store
from tunnel_server.web_config import WebLogin

ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrances:
    """Open the listeners of all entrances, and pass to each entrance the parts that it needs.

    ``authority_lock`` guards the authority's files. ``started`` is the start time of the server, for the API.
    ``wall`` returns the time in UTC.
    """

    config: ServerConfig
    listeners: OpenListeners
    acceptor: SessionAcceptor
    nodes: Nodes
    subscribers: EventSubscribers
    credential_watch: CredentialWatch
    records: StreamRecorder
    opener: Opener
    certificates: ServerCertificates
    authority: ServerAuthority
    reload: Reload
    authority_lock: trio.Lock
    store: Store
    started: datetime
    wall: Callable[[], datetime]

    @asynccontextmanager
    async def opened(self, nursery: trio.Nursery) -> AsyncIterator[None]:
        """Open all listeners. Raises ``CannotListen``.

        When the block ends, the carriers of agents are closed, and the listeners stay open.
        """
        carriers = serve_carriers(
            on_carrier=self.acceptor.take,
            limits=self.acceptor.limits,
            max_carriers=self.config.agents.max * 2,
            nursery=nursery,
        )
        async with carriers as carrier_server:
            await self._open_agents(carrier_server)
            await self._open_https()
            await self._open_admin()
            await self._open_connect_socket()
            await self._open_web(nursery)
            for forward in self.config.tcp:
                await self._open_tcp(forward)
            yield

    async def _open_agents(self, carrier_server: CarrierServer) -> None:
        serve = AgentsEntrance(carrier_server, self.records).serve
        seconds = self.config.limits.handshake_seconds
        handler = over_tls(AGENTS, self.certificates.agents, seconds, serve, self.records)
        await self.listeners.open_tcp(AGENTS, _listed(self.config.agents.listen), handler)

    async def _open_https(self) -> None:
        limits = self.config.limits
        sections = [self._est(), self._api()]
        if self.config.connect.enabled:
            sections.append(ConnectEntrance(self.opener).section())
        users = UserConnections(limits.max_connections_per_user, limits.max_connections)
        entrance = self._https_entrance(
            HTTPS, sections, identify_by_certificate(self.config.trust_domain), users
        )
        seconds = limits.handshake_seconds
        handler = over_tls(HTTPS, self.certificates.https, seconds, entrance.serve, self.records)
        await self.listeners.open_tcp(HTTPS, _listed(self.config.https.listen), handler)

    async def _open_admin(self) -> None:
        sections = [self._api(), self._admin()]
        entrance = self._https_entrance(
            ADMIN, sections, identify_by_file_mode(self.config.trust_domain), None
        )
        address = UnixAddress(self.config.admin.socket, self.config.admin.mode)
        await self.listeners.open_unix(ADMIN, address, entrance.serve)

    async def _open_connect_socket(self) -> None:
        unix = self.config.connect.unix
        if unix is None or not self.config.connect.enabled:
            return
        identify = identify_by_peer({peer.uid: peer.user for peer in unix.peer}, self.config.trust_domain)
        entrance = self._https_entrance(CONNECT, [ConnectEntrance(self.opener).section()], identify, None)
        await self.listeners.open_unix(CONNECT, UnixAddress(unix.path, unix.mode, unix.group), entrance.serve)

    async def _open_web(self, nursery: trio.Nursery) -> None:
        config, limits, certificates = self.config.web, self.config.limits, self.certificates.web
        users = UserConnections(limits.max_connections_per_user, limits.max_connections)
        web = WebEntrance(
            self.opener,
            config.domain,
            replace(self._head_limits(), max_head_bytes=config.head_bytes),
            config.service,
            login=self._web_login(config.login),
            proxies=TrustedProxies(config.trusted_proxies),
            tls=None if certificates is None else WebTls(contexts=certificates.contexts, users=users),
        )
        nursery.start_soon(web.pool.run)
        handler: Handler = web.serve
        if certificates is not None:
            nursery.start_soon(certificates.keep_current)
            handler = over_tls(WEB, certificates.contexts, limits.handshake_seconds, handler, self.records)
        is_tls, has_login = certificates is not None, config.login is WebLogin.CERTIFICATE
        await self.listeners.open_web(_listed(config.listen), handler, is_tls=is_tls, has_login=has_login)

    def _web_login(self, login: WebLogin) -> Login:
        match login:
            case WebLogin.NONE:
                return LoopbackLogin(self.config.trust_domain)
            case WebLogin.PROXY:
                return ProxyLogin(self.config.trust_domain)
            case WebLogin.CERTIFICATE:
                return CertificateLogin(self.credential_watch)

    async def _open_tcp(self, given: Tcp) -> None:
        forward = TcpForward(str(given.listen), given.node, given.target, given.allow_from)
        await self.listeners.open_tcp(TCP, [forward.listen], TcpEntrance(self.opener, forward).serve)

    def _https_entrance(
        self,
        entrance: str,
        sections: Sequence[Section[Caller]],
        identify: Identify,
        users: UserConnections | None,
    ) -> HttpsEntrance:
        return HttpsEntrance(
            entrance,
            sections,
            identify=identify,
            credential_watch=self.credential_watch,
            records=self.records,
            limits=self._head_limits(),
            users=users,
        )

    def _api(self) -> Section[Caller]:
        facts = ServerFacts(
            self.started,
            self.listeners.addresses,
            lambda: self.certificates.description,
            self.credential_watch.live_certificates,
            self.store,
        )
        entrance = ApiEntrance(
            self.nodes,
            self.subscribers,
            facts,
            self.credential_watch,
            self.opener.access,
            monotonic=trio.current_time,
            wall=self.wall,
        )
        return entrance.section()

    def _admin(self) -> Section[Caller]:
        rotated, live = self.reload.after_rotation, self.credential_watch.live_certificates
        actions = Actions(self.config, self.store, rotated, self.authority_lock, live, self.nodes)
        return AdminEntrance(actions).section()

    def _est(self) -> Section[Caller]:
        settings, signer = EnrolmentSettings.of(self.config), self.authority.signer
        enrolment = Enrolment(settings, signer, self.store, self.credential_watch, trio.current_time)
        return EstEntrance(enrolment, self._public_addresses, self.wall).section()

    def _public_addresses(self) -> PublicAddresses:
        names, bound = advertised_names(self.certificates.description.names), self.listeners.addresses()
        return PublicAddresses(
            self.config.trust_domain,
            bound_addresses(names, bound.get(AGENTS, [])),
            bound_addresses(names, bound.get(HTTPS, [])),
        )

    def _head_limits(self) -> HeadLimits:
        limits = self.config.limits
        return HeadLimits(limits.head_bytes, limits.head_headers, limits.head_seconds, limits.idle_seconds)


def _listed(addresses: Sequence[ListenAddress]) -> list[str]:
    return [str(address) for address in addresses]
