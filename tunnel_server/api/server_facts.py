"""Facts about the server for the API: its start, its addresses, and certificates that end soon."""

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
    """Each callable is called for each request, and must not block. ``addresses`` has a list per entrance."""

    started: datetime
    addresses: Callable[[], Mapping[str, Sequence[str]]]
    certificate: Callable[[], Description]
    live: Callable[[], Sequence[VerifiedCertificate]]
    store: Store

    async def node_certificate(self, name: str) -> NodeCertificate | None:
        """Return the certificate of the attached agent, else the newest that was issued to this name here.

        Raises ``StoreError``.
        """
        for proven in self.live():
            if proven.identity.role is Role.NODE and proven.identity.name == name:
                return NodeCertificate(proven.serial, proven.ends)
        return await self.store.newest_certificate(name)

    async def ending(self) -> list[dict[str, Any]]:
        """Return the certificates of nodes that should have been renewed by now. Raises ``StoreError``."""
        return await self.store.ending_certificates()
