"""Sessions and streams that live by the certificates which a revocation shuts out. No I/O."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any

from tunnel_core.identity import Role
from tunnel_server.auth.revocation_list import RevocationKind, kind_of

if TYPE_CHECKING:
    from certs.x509 import VerifiedCertificate
    from tunnel_server.nodes.registry import Nodes

_MAX_USERS = 100


def live_part(
    kind: RevocationKind, subjects: Set[str], live: Sequence[VerifiedCertificate], nodes: Nodes | None
) -> dict[str, Any]:
    """What would end, as JSON. ``live``: the certificates in use, one for each session or user's stream.

    ``subjects`` are the names or serials that are revoked.
    """
    matching = [proven for proven in live if _matches(proven, kind, subjects)]
    names = {proven.identity.name for proven in matching if proven.identity.role is Role.NODE}
    attached = nodes.attached() if nodes is not None else []
    links = [link for node, link in attached if node.name in names]
    through = [stream for link in links for stream in link.streams.values()]
    own = sum(proven.identity.role is Role.USER for proven in matching)
    return {
        "in_use": len(matching),
        "sessions": [{"node": link.node, "address": link.peer_address} for link in links],
        "streams": len(through) + own,
        "users": sorted({stream.user for stream in through})[:_MAX_USERS],
    }


def _matches(proven: VerifiedCertificate, kind: RevocationKind, subjects: Set[str]) -> bool:
    if kind is RevocationKind.SERIAL:
        return proven.serial in subjects
    return kind_of(proven.identity.role) is kind and proven.identity.name in subjects


def ends_nothing(ending: dict[str, Any]) -> bool:
    """Whether a revocation would shut out nothing that is known to be let in now."""
    return not (ending["certificates"] or ending["tokens"] or ending["in_use"])
