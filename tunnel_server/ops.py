"""Readiness and metrics of a server, on its ops listener."""

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
    """Readiness of a server: listeners open, no shutdown, and a certificate that has not expired."""

    def __init__(self, certificates: ServerCertificates) -> None:
        self._certificates = certificates
        self._missing = "starting"

    def note_started(self) -> None:
        """Note that all listeners are open."""
        self._missing = ""

    def note_stopping(self) -> None:
        """Note that the server accepts no more connections."""
        self._missing = Reason.SERVER_STOPPING.word

    def missing(self) -> str:
        """Return the word for the reason why the server is not ready, or an empty text if it is ready."""
        if not self._missing and self._certificates.is_expired():
            return "certificate_expired"
        return self._missing


@dataclass(frozen=True, slots=True)
class ServerOps:
    """Ops listener of a server. Beyond loopback it can require a user's certificate that is not revoked."""

    config: ServerConfig
    readiness: Readiness
    nodes: Nodes
    counters: Counters
    store: Store
    credential_watch: CredentialWatch
    certificates: ServerCertificates

    async def open(self, nursery: trio.Nursery) -> list[str]:
        """Listen, serve in ``nursery``, and return the addresses. Raises ``CannotListen``."""
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
        verified = proven_leaf(leaf, usage=Usage.CLIENT, role=Role.USER, trust_domain=domain)
        self.credential_watch.require(verified)
