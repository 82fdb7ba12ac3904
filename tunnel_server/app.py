"""The composition root of ``qanat-server``: reads as the list of what runs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import trio

from certs.authority_folder import retired_keys
from certs.rotation import Step
from certs.x509 import Usage, proven_leaf
from tunnel_core.counters import Counters, Snapshot
from tunnel_core.credit import CreditPool
from tunnel_core.descriptors import DescriptorLimit, raise_descriptor_limit
from tunnel_core.http import HeadLimits
from tunnel_core.http2_carrier import serve_carriers
from tunnel_core.http_router import Section
from tunnel_core.identity import Role
from tunnel_core.limits import Limits
from tunnel_core.link import Link
from tunnel_core.logs import log_event
from tunnel_core.mux_stream import MuxStream
from tunnel_core.ops import OpsAccess, OpsPages, OpsTls, serve_ops
from tunnel_core.pressure import relieve_pressure, relieve_send_pool
from tunnel_core.reasons import Reason
from tunnel_core.sockets import why_not_listening
from tunnel_server.admin.actions import Actions
from tunnel_server.attach import Attachments, AttachSettings
from tunnel_server.binding import CannotListen, UnixAddress
from tunnel_server.callers import Caller
from tunnel_server.config import ServerConfig
from tunnel_server.credentials import BadCredentials, Credentials, make_contexts, read_credentials, tls_files
from tunnel_server.enrolment.answers import Signer, load_signer
from tunnel_server.enrolment.enrolment import Enrolment, EnrolmentSettings
from tunnel_server.entrances.admin import AdminEntrance
from tunnel_server.entrances.agents import ALPN, AgentsEntrance
from tunnel_server.entrances.agents import ENTRANCE as AGENTS
from tunnel_server.entrances.api import ApiEntrance
from tunnel_server.entrances.connect import ENTRANCE as CONNECT
from tunnel_server.entrances.connect import ConnectEntrance
from tunnel_server.entrances.est import EstEntrance, Reach
from tunnel_server.entrances.tcp import ENTRANCE as TCP
from tunnel_server.entrances.tcp import TcpEntrance, TcpForward
from tunnel_server.entrances.web import ENTRANCE as WEB
from tunnel_server.entrances.web import WebEntrance
from tunnel_server.events import Kind
from tunnel_server.figures import take_snapshot
from tunnel_server.followers import Followers
from tunnel_server.front import Front
from tunnel_server.handshake import TlsContexts, over_tls
from tunnel_server.identify import Identify, by_certificate, by_file_mode, by_peer
from tunnel_server.keeping import how_it_started
from tunnel_server.nodes import Nodes
from tunnel_server.open_listeners import HTTPS, OpenListeners
from tunnel_server.opening import Opener
from tunnel_server.own_certificate import OwnCertificate
from tunnel_server.reach import bound_addresses, worth_telling
from tunnel_server.records import Records
from tunnel_server.refusals import Refusals, about
from tunnel_server.rotating import AUTHORITY_FOLDER
from tunnel_server.running_store import keep_store
from tunnel_server.server_facts import ServerFacts
from tunnel_server.standing import Ended, Standing
from tunnel_server.store.audit import AuditLine
from tunnel_server.store.audit import Kind as AuditKind
from tunnel_server.store.database import StoreError
from tunnel_server.store.lock import StoreHeld
from tunnel_server.store.places import most_nodes
from tunnel_server.store.store import Store
from tunnel_server.user_connections import UserConnections

_log = logging.getLogger("qanat.server")

ADMIN = "admin"


class CannotStart(Exception):  # noqa: N818 - named by what happened
    """The server cannot serve as it is configured; the text says why and what to do."""


class Server:
    """The parts of a running server, and how they are joined."""

    def __init__(self, config: ServerConfig, nursery: trio.Nursery) -> None:
        self.config = config
        self.nodes = Nodes(trio.current_time, _now, most_gone=most_nodes(config))
        self.counters = Counters()
        self.followers = Followers(self.nodes.events, self.counters)
        self.standing = Standing(_now, self._note_ended)
        self.refusals = Refusals(self._audit, trio.current_time)
        self.records = Records(self.counters, config.log, trio.current_time, self.refusals)
        self.opener = Opener(
            self.nodes,
            self.records,
            trust_domain=config.trust_domain,
            standing=self.standing,
            half_closed_seconds=config.session.half_closed_seconds or None,
        )
        self.pool = CreditPool(Limits().credit_pool)
        self.attachments = Attachments(
            AttachSettings(config.trust_domain, config.agents.max, _link_limits(config)),
            self.nodes,
            self.pool,
            nursery,
            self.counters,
            standing=self.standing,
            refusals=self.refusals,
        )
        self._open = OpenListeners(config.limits, self.records, nursery, most_agents=config.agents.max)
        self.listeners = self._open.listeners
        self.ops_addresses: list[str] = []
        self._nursery = nursery
        self._changing = trio.Lock()
        self._missing = "starting"
        self._started = _now()
        self._authority = config.data_dir / AUTHORITY_FOLDER
        self._credentials, self._contexts = _read_credentials(config, self._authority)
        self._agent_contexts = _agent_contexts(config)
        self.attachments.trust_bundle = self._credentials.roots_to_tell()
        self._store: Store | None = None
        self._enrolment: Enrolment | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything is open inside the block. Raises ``CannotStart``."""
        descriptors = raise_descriptor_limit()
        self._log_descriptors(descriptors)
        self._open.leave_descriptors(descriptors.now)
        self._credentials.log(_now())
        self._credentials.log_other_roots(self._authority)
        async with AsyncExitStack() as stack:
            try:
                await self._open_store(stack)
                stack.callback(self._stop_accepting)
                await self._open_all(stack)
            except CannotListen as error:
                raise CannotStart(str(error)) from error
            self._missing = ""
            self.nodes.events.add(Kind.SERVER_STARTED, "", "", detail=await how_it_started(self.store))
            yield
            self.nodes.events.add(Kind.SERVER_STOPPED, "", "")

    def _log_descriptors(self, limit: DescriptorLimit) -> None:
        most = self.config.agents.max
        if limit.carries >= most:
            log_event(_log, logging.INFO, str(limit))
        else:
            sentence = f"{limit}, fewer than [agents] max = {most}; raise LimitNOFILE= or ulimit -n"
            log_event(_log, logging.WARNING, sentence)

    async def _open_store(self, stack: AsyncExitStack) -> None:
        """Takes the data folder first, and gives it back last."""
        try:
            kept = keep_store(self.config, self.nodes, self.refusals, self._nursery, _now)
            self._store = await stack.enter_async_context(kept)
            self.standing.go_by(self._store.revoked)
            self._nursery.start_soon(self.standing.watch)
        except StoreHeld as error:
            raise CannotStart(
                f"{error}; one data folder is for one server: stop that process first"
            ) from error
        except StoreError as error:
            raise CannotStart(error.detail) from error

    async def _open_all(self, stack: AsyncExitStack) -> None:
        await self._open_ops()
        await self._open_agents(stack)
        self._nursery.start_soon(relieve_pressure, self.pool, self._mux_streams, self.attachments.limits)
        self._nursery.start_soon(
            relieve_send_pool, self.attachments.send_pool, self._sessions, self.attachments.limits
        )
        await self._open_entrances()
        own = OwnCertificate(self.config, self.store, self._changing, _now, self.reload)
        self._nursery.start_soon(own.keep)

    async def _open_agents(self, stack: AsyncExitStack) -> None:
        carriers = serve_carriers(
            on_carrier=self.attachments.take,
            limits=self.attachments.limits,
            max_carriers=self.config.agents.max * 2,
            nursery=self._nursery,
        )
        carrier_server = await stack.enter_async_context(carriers)
        serve = AgentsEntrance(carrier_server, self.records).serve
        seconds = self.config.limits.handshake_seconds
        handler = over_tls(AGENTS, self._agent_contexts, seconds, serve, self.records)
        await self._open.open_tcp(AGENTS, [str(address) for address in self.config.agents.listen], handler)

    async def _open_ops(self) -> None:
        settings = self.config.ops
        try:
            ops = await self._nursery.start(serve_ops, settings, self._ops_pages(), self._access())
        except OSError as error:
            port = settings.listen.port if settings.listen else 0
            why = why_not_listening(error, port)
            raise CannotListen(f"cannot listen on {settings.listen}, [ops] listen: {why}") from error
        self.ops_addresses = ops.addresses

    async def _open_entrances(self) -> None:
        await self._serve_https()
        await self._serve_unix()
        await self._serve_web()
        for forward in self.config.tcp:
            await self._serve_tcp(
                TcpForward(str(forward.listen), forward.node, forward.target, forward.allow_from)
            )

    async def _serve_https(self) -> None:
        sections = [self._est().section(), self._api().section()]
        if self.config.connect.enabled:
            sections.append(ConnectEntrance(self.opener).section())
        limits = self.config.limits
        users = UserConnections(limits.max_connections_per_user, limits.max_connections)
        front = self._front(HTTPS, sections, by_certificate(self.config.trust_domain), users)
        handler = over_tls(HTTPS, self._contexts, limits.handshake_seconds, front.serve, self.records)
        await self._open.open_tcp(HTTPS, [str(address) for address in self.config.https.listen], handler)

    async def _serve_unix(self) -> None:
        domain = self.config.trust_domain
        sections = [self._api().section(), self._admin().section()]
        admin = self._front(ADMIN, sections, by_file_mode(domain), None)
        socket = UnixAddress(self.config.admin.socket, self.config.admin.mode)
        await self._open.open_unix(ADMIN, socket, admin.serve)
        unix = self.config.connect.unix
        if unix is not None and self.config.connect.enabled:
            peers = by_peer({peer.uid: peer.user for peer in unix.peer}, domain)
            front = self._front(CONNECT, [ConnectEntrance(self.opener).section()], peers, None)
            address = UnixAddress(unix.path, unix.mode, unix.group)
            await self._open.open_unix(CONNECT, address, front.serve)

    async def _serve_web(self) -> None:
        web = WebEntrance(self.opener, self.config.web.domain, self._head_limits())
        await self._open.open_tcp(WEB, [str(address) for address in self.config.web.listen], web.serve)

    async def _serve_tcp(self, forward: TcpForward) -> None:
        await self._open.open_tcp(TCP, [forward.listen], TcpEntrance(self.opener, forward).serve)

    def _front(
        self,
        entrance: str,
        sections: Sequence[Section[Caller]],
        identify: Identify,
        users: UserConnections | None,
    ) -> Front:
        return Front(
            entrance,
            sections,
            identify=identify,
            standing=self.standing,
            records=self.records,
            limits=self._head_limits(),
            users=users,
        )

    def _api(self) -> ApiEntrance:
        certificate = lambda: self._credentials.said  # noqa: E731 - it is replaced by a reload
        facts = ServerFacts(self._started, self.addresses, certificate, self.standing.proven, self.store)
        return ApiEntrance(
            self.nodes, self.followers, facts, self.standing, monotonic=trio.current_time, wall=_now
        )

    def addresses(self) -> dict[str, list[str]]:
        """Return where agents and users connect, by entrance."""
        return self._open.addresses()

    @property
    def agent_addresses(self) -> list[str]:
        """Where agents connect."""
        return self._open.addresses().get(AGENTS, [])

    def _admin(self) -> AdminEntrance:
        live = self.standing.proven
        return AdminEntrance(
            Actions(self.config, self.store, self._rotated, self._changing, live, self.nodes)
        )

    def _rotated(self, step: Step, forced: bool) -> None:
        """Everything goes by the new files from here on. Who was to be cut off goes now."""
        self.reload()
        if step is not Step.RETIRE or not forced:
            return
        try:
            self.standing.retire(retired_keys(self.config.data_dir / AUTHORITY_FOLDER))
        except (OSError, ValueError) as error:
            _log.error("sessions and streams of the retired root go on until they end: %s", error)

    def _est(self) -> EstEntrance:
        identity, domain = self.config.identity, self.config.trust_domain
        settings = EnrolmentSettings(
            domain,
            identity.node_life_seconds,
            identity.user_life_seconds,
            identity.max_enrolments,
            renews_only_own=self.config.tls.user_trust_file is not None,
        )
        self._enrolment = Enrolment(
            settings, self._load_signer(), self.store, self.standing, trio.current_time
        )
        return EstEntrance(self._enrolment, self._reach, _now)

    def _load_signer(self) -> Signer | None:
        return load_signer(self._authority, self.config.tls.trust_file)

    def _reach(self) -> Reach:
        names = worth_telling(self._credentials.said.names)
        https = self._open.addresses().get(HTTPS, [])
        return Reach(
            self.config.trust_domain,
            bound_addresses(names, self.agent_addresses),
            bound_addresses(names, https),
        )

    @property
    def store(self) -> Store:
        """Open inside of ``running``."""
        assert self._store is not None
        return self._store

    def _head_limits(self) -> HeadLimits:
        limits = self.config.limits
        return HeadLimits(limits.head_bytes, limits.head_headers, limits.head_seconds, limits.idle_seconds)

    def _stop_accepting(self) -> None:
        self._missing = Reason.SERVER_STOPPING.word
        self._open.stop_accepting()

    def reload(self) -> None:
        """New connections see certificate and roots as the files are now; bad files change nothing."""
        try:
            credentials = read_credentials(self.config.tls, _now())
            self._contexts.reload()
            self._agent_contexts.reload()
        except (BadCredentials, OSError, ValueError) as error:
            _log.error("the certificates stay as they were: %s", error)
            return
        self._credentials = credentials
        self.attachments.trust_bundle = credentials.roots_to_tell()
        if self._enrolment is not None:
            self._enrolment.replace_signer(self._load_signer())
        _log.info("certificates and roots were read anew")
        credentials.log(_now())

    def missing(self) -> str:
        """The word for what keeps this server from being ready; empty if nothing does."""
        if not self._missing and self._credentials.expired(_now()):
            return "certificate_expired"
        return self._missing

    async def drain(self) -> None:
        """Stops accepting, tells the agents, lets streams finish for ``drain_seconds``, resets the rest."""
        seconds = self.config.drain_seconds
        self._stop_accepting()
        self.attachments.drain(seconds)
        with trio.move_on_after(seconds) as scope:
            await self.attachments.wait_no_streams()
        if scope.cancelled_caught:
            _log.warning("%d streams did not finish in %g s", self.attachments.stream_count, seconds)
        await self.attachments.end_all(Reason.SERVER_STOPPING)
        _log.info("drained")

    def _mux_streams(self) -> list[MuxStream]:
        return [stream for _, link in self.nodes.attached() for stream in link.mux_streams]

    def _sessions(self) -> list[Link]:
        return [link for _, link in self.nodes.attached()]

    def _access(self) -> OpsAccess:
        ops, domain = self.config.ops, self.config.trust_domain

        def check(leaf: bytes) -> None:
            proven = proven_leaf(leaf, usage=Usage.CLIENT, role=Role.USER, trust_domain=domain)
            self.standing.require(proven)

        tls = OpsTls(lambda: self._contexts.current, check) if ops.tls else None
        return OpsAccess(ops.bearer_file, tls)

    def _ops_pages(self) -> OpsPages:
        return OpsPages(self._snapshot, self.missing, degraded=self._is_degraded, counters=self.counters)

    def _is_degraded(self) -> bool:
        return self._store is not None and (self._store.is_failing or self._store.audit_dropped > 0)

    def _snapshot(self) -> Snapshot:
        per_node = self.config.metrics.per_node
        return take_snapshot(
            self.counters,
            self.nodes,
            trio.current_time,
            per_node=per_node,
            audit_dropped=self._audit_dropped(),
        )

    def _audit(self, line: AuditLine) -> None:
        if self._store is not None:
            self._store.note_nowait(line)

    def _note_ended(self, ended: Ended) -> None:
        proven, refused = ended.proven, ended.refused
        single = ended.count == 1
        what = "session, stream or answer was" if single else "sessions, streams or answers were"
        sentence = f"{ended.count} {what} ended: {refused.detail}"
        log_event(_log, logging.WARNING, sentence, reason=refused.reason, serial=proven.serial)
        reason = refused.reason.word
        line = AuditLine(AuditKind.ENDED, serial=proven.serial, reason=reason, detail=sentence)
        self._audit(about(proven.identity, line))

    def _audit_dropped(self) -> int:
        return self._store.audit_dropped if self._store else 0


def _now() -> datetime:
    return datetime.now(UTC)


def _link_limits(config: ServerConfig) -> Limits:
    session = config.session
    return Limits(
        max_streams=session.max_streams,
        max_streams_per_user=session.max_streams_per_user,
        ping_interval_seconds=session.ping_interval_seconds,
        missed_pings=session.missed_pings,
        attach_timeout_seconds=session.attach_timeout_seconds,
        open_timeout_seconds=config.open_timeout_seconds,
        grace_seconds=session.grace_seconds,
        open_wait_seconds=session.open_wait_seconds,
    )


def _agent_contexts(config: ServerConfig) -> TlsContexts:
    try:
        return make_contexts(
            replace(tls_files(config.tls), alpn=ALPN, requires_certificate=True, user_trust_file=None)
        )
    except BadCredentials as error:
        raise CannotStart(str(error)) from error


def _read_credentials(config: ServerConfig, authority: Path) -> tuple[Credentials, TlsContexts]:
    try:
        credentials = read_credentials(config.tls, _now())
        users = config.tls.user_trust_file
        files = replace(tls_files(config.tls), authority=authority, user_trust_file=users)
        return credentials, make_contexts(files)
    except BadCredentials as error:
        raise CannotStart(str(error)) from error
