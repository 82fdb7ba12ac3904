"""What the ops listener of a server shows: whether the server is ready, and its figures."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from certs.x509 import Usage, proven_leaf
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason
from tunnel_core.streams.sockets import why_not_listening
from tunnel_core.telemetry.counters import Counters, Snapshot
from tunnel_core.telemetry.ops_server import OpsAccess, OpsPages, OpsServer, OpsTls, serve_ops
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.config import ServerConfig
from tunnel_server.listeners.addresses import CannotListen
from tunnel_server.nodes.metrics_snapshot import take_snapshot
from tunnel_server.nodes.registry import Nodes
from tunnel_server.pki.reload import ServerCertificates
from tunnel_server.store.store import Store


class Readiness:
    """Whether the server is ready: everything is open, it is not stopping, and its certificate holds."""

    def __init__(self, certificates: ServerCertificates) -> None:
        self._certificates = certificates
        self._missing = "starting"

    def note_started(self) -> None:
        """Everything is open."""
        self._missing = ""

    def note_stopping(self) -> None:
        """The server accepts no more connections."""
        self._missing = Reason.SERVER_STOPPING.word

    def missing(self) -> str:
        """Return the word for what keeps the server from being ready; empty if nothing does."""
        if not self._missing and self._certificates.is_expired():
            return "certificate_expired"
        return self._missing


@dataclass(frozen=True, slots=True)
class ServerOps:
    """The ops listener of a server. Beyond loopback, users in good standing are its operators."""

    config: ServerConfig
    readiness: Readiness
    nodes: Nodes
    counters: Counters
    store: Store
    standing: CredentialWatch
    certificates: ServerCertificates

    async def open(self, nursery: trio.Nursery) -> list[str]:
        """Listen, and serve in ``nursery``. Returns the addresses. Raises ``CannotListen``."""
        settings = self.config.ops
        pages = OpsPages(
            self._snapshot, self.readiness.missing, degraded=self._is_degraded, counters=self.counters
        )
        try:
            server: OpsServer = await nursery.start(serve_ops, settings, pages, self._access())
        except OSError as error:
            port = settings.listen.port if settings.listen else 0
            why = why_not_listening(error, port)
            raise CannotListen(f"cannot listen on {settings.listen}, [ops] listen: {why}") from error
        return server.addresses

    def _snapshot(self) -> Snapshot:
        return take_snapshot(
            self.counters,
            self.nodes,
            trio.current_time,
            per_node=self.config.metrics.per_node,
            audit_dropped=self.store.audit_dropped,
        )

    def _is_degraded(self) -> bool:
        return self.store.is_failing or self.store.audit_dropped > 0

    def _access(self) -> OpsAccess:
        settings = self.config.ops
        tls = (
            OpsTls(lambda: self.certificates.https.current, self._check_certificate) if settings.tls else None
        )
        return OpsAccess(settings.bearer_file, tls)

    def _check_certificate(self, leaf: bytes) -> None:
        domain = self.config.trust_domain
        proven = proven_leaf(leaf, usage=Usage.CLIENT, role=Role.USER, trust_domain=domain)
        self.standing.require(proven)
