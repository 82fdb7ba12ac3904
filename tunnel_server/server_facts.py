"""What the API tells of the server itself: since when it runs, where it listens, which certificates end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from certs.x509 import Description, Proven
from tunnel_core.identity import Role
from tunnel_server.store.certificates import NodeCertificate
from tunnel_server.store.store import Store


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Each callable is asked when the API is, and must not block. ``addresses`` has a list per entrance."""

    started: datetime
    addresses: Callable[[], Mapping[str, Sequence[str]]]
    certificate: Callable[[], Description]
    live: Callable[[], Sequence[Proven]]
    store: Store

    async def node_certificate(self, name: str) -> NodeCertificate | None:
        """Return the certificate that the node is in by, else the newest that was issued to its name here.

        Raises ``StoreError``.
        """
        for proven in self.live():
            if proven.identity.role is Role.NODE and proven.identity.name == name:
                return NodeCertificate(proven.serial, proven.ends)
        return await self.store.newest_certificate(name)

    async def ending(self) -> list[dict[str, Any]]:
        """Return the certificates of nodes that should have been renewed by now. Raises ``StoreError``."""
        return await self.store.ending_certificates()
