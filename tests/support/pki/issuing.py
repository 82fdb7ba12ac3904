"""A server that issues certificates: the EST entrance behind real TLS, over a store of its own."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import trio

from certs.ca import Leaf
from certs.token import Token, make_token
from tests.support.fakes.edge import Edge, now, open_edge
from tests.support.pki import authority as pki
from tunnel_server.auth.identify import identify_by_certificate
from tunnel_server.entrances.est import EstEntrance, PublicAddresses
from tunnel_server.listeners.listener import Listener
from tunnel_server.listeners.tls import TlsContexts, TlsFiles, over_tls
from tunnel_server.pki.enrolment.enrolment import Enrolment, EnrolmentSettings
from tunnel_server.pki.enrolment.signer import Signer
from tunnel_server.store.audit import AuditQuery
from tunnel_server.store.store import FILE, Store, StoreSettings, open_store
from tunnel_server.store.tokens import NewToken

SETTINGS = EnrolmentSettings(pki.TRUST_DOMAIN, 3600.0, 1800.0, renews_only_own=False)


@dataclass
class Issuing:
    """The running server. ``listener`` uses the certificate of ``pki.server_leaf``."""

    folder: Path
    edge: Edge
    store: Store
    enrolment: Enrolment
    listener: Listener
    signers: list[Signer]
    """The last signer is the one in use."""

    @property
    def address(self) -> str:
        return self.listener.addresses[0]

    @property
    def roots(self) -> Path:
        """The roots that a client of this server trusts."""
        return self.folder / "trust.pem"

    async def token(
        self, node: str = "edge1", *, pattern: str = "", uses: int = 1, ttl: float = 3600
    ) -> Token:
        token = make_token(pki.authority().root_pin, secrets.token_bytes(30))
        await self.store.create_token(NewToken(token, ttl, "" if pattern else node, pattern, uses), "test")
        return token

    async def audit(self) -> list[tuple[str, str, str]]:
        """Return kind, reason and name of each line so far, except for tokens made."""
        await self.store.prune()  # passes through the writer, after the waiting writes
        lines = await self.store.audit(AuditQuery())
        return [
            (line["kind"], line.get("reason", ""), line.get("node", line.get("user", "")))
            for line in lines
            if line["kind"] != "token_created"
        ]


@contextlib.asynccontextmanager
async def open_issuing(
    folder: Path,
    settings: EnrolmentSettings = SETTINGS,
    *,
    leaf: Leaf | None = None,
    wall: Callable[[], datetime] = now,
    serves: bool = True,
    user_roots: bytes = b"",
    **changes: object,
) -> AsyncIterator[Issuing]:
    """Serve EST with the certificate ``leaf``. ``pki.authority()`` signs, and ``wall`` is the clock.

    ``user_roots`` (PEM) certify users only.
    """
    leaf = leaf or pki.server_leaf()
    for name, content in (
        ("server.pem", leaf.chain_pem),
        ("server.key", leaf.credential.key_pem),
        ("trust.pem", leaf.roots_pem),
    ):
        (folder / name).write_bytes(content)
    (folder / "ca").mkdir()
    (folder / "ca" / "issuing.pem").write_bytes(pki.authority().issuing.certificate_pem)
    files = TlsFiles(
        folder / "server.pem", folder / "server.key", folder / "trust.pem", authority=folder / "ca"
    )
    if user_roots:
        (folder / "users.pem").write_bytes(user_roots)
        files = replace(files, user_trust_file=folder / "users.pem")
    store = open_store(StoreSettings(folder / FILE), now)
    async with open_edge(store.revoked) as edge:
        signers = [Signer(pki.authority(), leaf.roots_pem)]
        enrolment = Enrolment(
            replace(settings, **changes), lambda: signers[-1], store, edge.watch, trio.current_time
        )
        est = EstEntrance(
            enrolment,
            lambda: PublicAddresses(pki.TRUST_DOMAIN, ("localhost:7001",), ("localhost:7002",)),
            wall,
        )
        https_entrance = edge.https_entrance(
            identify_by_certificate(pki.TRUST_DOMAIN), est.section(), edge.api()
        )
        handler = over_tls("https", TlsContexts(files), 5.0, https_entrance.serve, edge.records)
        listener = await edge.listen("https", handler)
        async with trio.open_nursery() as nursery:
            if serves:
                nursery.start_soon(store.serve)
            try:
                yield Issuing(folder, edge, store, enrolment, listener, signers)
            finally:
                if not serves:
                    nursery.start_soon(store.serve)
                await store.aclose()
                nursery.cancel_scope.cancel()
