"""Sessions and streams that a revocation would end. No I/O."""

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
    """Return as JSON the sessions and streams that the revocation of ``subjects`` would end.

    ``subjects`` are names or serials. ``live`` has one certificate for each session and each user's stream.
    """
    matching = [certificate for certificate in live if _matches(certificate, kind, subjects)]
    node_names = {found.identity.name for found in matching if found.identity.role is Role.NODE}
    attached = nodes.attached() if nodes is not None else []
    sessions = [session for node, session in attached if node.name in node_names]
    through_nodes = [stream for session in sessions for stream in session.streams.values()]
    of_users = sum(found.identity.role is Role.USER for found in matching)
    return {
        "in_use": len(matching),
        "sessions": [{"node": session.node, "address": session.peer_address} for session in sessions],
        "streams": len(through_nodes) + of_users,
        "users": sorted({stream.user for stream in through_nodes})[:_MAX_USERS],
    }


def _matches(certificate: VerifiedCertificate, kind: RevocationKind, subjects: Set[str]) -> bool:
    if kind is RevocationKind.SERIAL:
        return certificate.serial in subjects
    return kind_of(certificate.identity.role) is kind and certificate.identity.name in subjects


def ends_nothing(ending: dict[str, Any]) -> bool:
    """Whether a revocation would affect no certificate, token or session that the server knows."""
    return not (ending["certificates"] or ending["tokens"] or ending["in_use"])
