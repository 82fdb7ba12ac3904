"""Composition root of ``qanat-server``: create the parts of a server, open and close them in order."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial

import trio

from tunnel_core.mux.credit import CreditPool
from tunnel_core.mux.stream_state import StreamState
from tunnel_core.reasons import Reason
from tunnel_core.runtime.memory_limit import pool_bytes
from tunnel_core.session.memory_pressure import relieve_pressure, relieve_send_pool
from tunnel_core.session.session import Session
from tunnel_core.telemetry.counters import Counters
from tunnel_server.access.opener import opener_of
from tunnel_server.accounting.event_writer import describe_start
from tunnel_server.accounting.refusal_audit import Refusals, record_ended
from tunnel_server.accounting.stream_records import StreamRecorder
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.config import ServerConfig, session_limits
from tunnel_server.entrances.agents import ALPN
from tunnel_server.entrances.open_listeners import Addresses, OpenListeners, claim_descriptors
from tunnel_server.entrances.startup import Entrances
from tunnel_server.events.event_log import EventKind
from tunnel_server.events.subscribers import EventSubscribers
from tunnel_server.listeners.addresses import CannotListen
from tunnel_server.nodes.attach import AttachSettings, SessionAcceptor
from tunnel_server.nodes.registry import Nodes
from tunnel_server.nodes.running_store import restored_nodes, running_store
from tunnel_server.ops import Readiness, ServerOps
from tunnel_server.pki.reload import Reload, ServerAuthority, ServerCertificates
from tunnel_server.pki.server_certificate import OwnCertificate
from tunnel_server.pki.server_credentials import BadCredentials
from tunnel_server.store.database import StoreError
from tunnel_server.store.lock import StoreHeld
from tunnel_server.store.settings import most_nodes
from tunnel_server.store.store import Store

_log = logging.getLogger("qanat.server")


class CannotStart(Exception):  # noqa: N818 - named by what happened
    """The server cannot serve with this configuration. The text names the problem and the remedy."""


@asynccontextmanager
async def open_server(config: ServerConfig, nursery: trio.Nursery) -> AsyncIterator[Server]:
    """Create a server with its store, which is open inside the block and closes last. Raises ``CannotStart``.

    The server's tasks run in ``nursery``, which the caller must cancel after the block.
    """
    try:
        certificates = ServerCertificates(config, ALPN, _now)
    except BadCredentials as error:
        raise CannotStart(str(error)) from error
    descriptors = claim_descriptors(config.agents.max)
    certificates.log()
    certificates.log_other_roots()
    async with AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(running_store(config, nursery, _now))
            server = Server(config, nursery, certificates, store, descriptors)
            restored = restored_nodes(store, server.nodes, server.refusals, nursery)
            await stack.enter_async_context(restored)
        except StoreHeld as error:
            cure = "only one server may use a data folder: stop that process first"
            raise CannotStart(f"{error}; {cure}") from error
        except StoreError as error:
            raise CannotStart(error.detail) from error
        yield server


class Server:
    """Parts of a server, all created in the constructor. ``listening`` opens the listeners."""

    def __init__(
        self,
        config: ServerConfig,
        nursery: trio.Nursery,
        certificates: ServerCertificates,
        store: Store,
        descriptors: int,
    ) -> None:
        self._config = config
        self._nursery = nursery
        self._store = store
        self._certificates = certificates
        self._counters = Counters()
        self._pool = CreditPool(pool_bytes(config.session.pool_bytes))
        self._authority_lock = trio.Lock()
        self.nodes = Nodes(trio.current_time, _now, store.revoked.covers_node, most_gone=most_nodes(config))
        self.refusals = Refusals(store.note_nowait, trio.current_time)
        on_ended = partial(record_ended, store.note_nowait)
        self._credential_watch = CredentialWatch(store.revoked, _now, on_ended)
        self._records = StreamRecorder(self._counters, config.log, trio.current_time, self.refusals)
        self._authority = ServerAuthority(config)
        self._reload = Reload(certificates, self._authority, self._credential_watch)
        self._readiness = Readiness(certificates)
        self._acceptor = SessionAcceptor(
            AttachSettings(config.trust_domain, config.agents.max, session_limits(config, self._pool.size)),
            self.nodes,
            self._pool,
            nursery,
            self._counters,
            credential_watch=self._credential_watch,
            refusals=self.refusals,
            trust_bundle=lambda: certificates.trust_bundle,
        )
        self._listeners = OpenListeners(
            config.limits, self._records, nursery, max_agents=config.agents.max, descriptors=descriptors
        )
        self._ops = ServerOps(
            config, self._readiness, self.nodes, self._counters, store, self._credential_watch, certificates
        )
        self._entrances = self._make_entrances()
        self._own_certificate = OwnCertificate(config, store, self._authority_lock, _now, self.reload)

    def _make_entrances(self) -> Entrances:
        config, credential_watch = self._config, self._credential_watch
        return Entrances(
            config=config,
            listeners=self._listeners,
            acceptor=self._acceptor,
            nodes=self.nodes,
            subscribers=EventSubscribers(self.nodes.events, self._counters),
            credential_watch=credential_watch,
            records=self._records,
            opener=opener_of(config, self._store, self.nodes, self._records, credential_watch),
            certificates=self._certificates,
            authority=self._authority,
            reload=self._reload,
            authority_lock=self._authority_lock,
            store=self._store,
            started=_now(),
            wall=_now,
        )

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Addresses]:
        """Open the listeners. They stop accepting when the block ends. Raises ``CannotStart``."""
        async with AsyncExitStack() as stack:
            stack.callback(self._stop_accepting)
            self._start_tasks()
            try:
                ops = await self._ops.open(self._nursery)
                await stack.enter_async_context(self._entrances.opened(self._nursery))
            except CannotListen as error:
                raise CannotStart(str(error)) from error
            self._nursery.start_soon(self._own_certificate.keep_valid)
            self._readiness.note_started()
            self.nodes.events.add(EventKind.SERVER_STARTED, "", "", detail=await describe_start(self._store))
            yield {**self._listeners.addresses(), "ops": ops}
            self.nodes.events.add(EventKind.SERVER_STOPPED, "", "")

    def _start_tasks(self) -> None:
        limits, send_pool = self._acceptor.limits, self._acceptor.send_pool
        self._nursery.start_soon(self._credential_watch.watch)
        self._nursery.start_soon(relieve_pressure, self._pool, self._mux_streams, limits)
        self._nursery.start_soon(relieve_send_pool, send_pool, self._sessions, limits)

    def _mux_streams(self) -> list[StreamState]:
        return [stream for session in self._sessions() for stream in session.mux_streams]

    def _sessions(self) -> list[Session]:
        return [session for _, session in self.nodes.attached()]

    def reload(self) -> None:
        """Reload certificate and roots from their files for new connections. Bad files change nothing."""
        self._reload.reload()

    def _stop_accepting(self) -> None:
        self._readiness.note_stopping()
        self._listeners.stop_accepting()

    async def drain(self) -> None:
        """Stop accepting, announce the drain to agents, and reset streams left after ``drain_seconds``."""
        seconds = self._config.drain_seconds
        self._stop_accepting()
        self._acceptor.drain(seconds)
        with trio.move_on_after(seconds) as scope:
            await self._acceptor.wait_no_streams()
        if scope.cancelled_caught:
            _log.warning("%d streams did not finish in %g s", self._acceptor.stream_count, seconds)
        await self._acceptor.end_all(Reason.SERVER_STOPPING)
        _log.info("drained")


def _now() -> datetime:
    return datetime.now(UTC)
