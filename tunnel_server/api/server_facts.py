"""Facts about the server for the API: start time, addresses, and certificates that expire soon."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from certs.x509 import Description, VerifiedCertificate
from tunnel_core.identity import Role
from tunnel_server.store.certificates import NodeCertificate
from tunnel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Facts for the API. Each callable runs for each request, and must not block.

    ``addresses`` returns the addresses of each entrance, ``live`` the certificates in use.
    """

    started: datetime
    addresses: Callable[[], Mapping[str, Sequence[str]]]
    certificate: Callable[[], Description]
    live: Callable[[], Sequence[VerifiedCertificate]]
    store: Store

    async def node_certificate(self, name: str) -> NodeCertificate | None:
        """Return the certificate of the attached agent, or the newest that this server issued to the node.

        Raises ``StoreError``.
        """
        for certificate in self.live():
            if certificate.identity.role is Role.NODE and certificate.identity.name == name:
                return NodeCertificate(certificate.serial, certificate.ends)
        return await self.store.newest_certificate(name)

    async def ending(self) -> list[dict[str, Any]]:
        """Return the certificates of nodes whose renewal is overdue. Raises ``StoreError``."""
        return await self.store.ending_certificates()
