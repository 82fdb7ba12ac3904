"""Users of this server, and how a certificate becomes one. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused

if TYPE_CHECKING:
    from certs.x509 import VerifiedCertificate


LOOPBACK_USER = "loopback"
"""The user of each browser at the web entrance on loopback, which has no login."""


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated person or program. ``certificate`` is the proof; None at a unix socket.

    ``groups`` are those that the login proved. The store may have further groups of this user.
    """

    name: str
    role: Role
    trust_domain: str
    certificate: VerifiedCertificate | None = None
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Administrator(User):
    """A user that the file mode of the admin socket admits, with all rights there."""


def user_of(certificate: VerifiedCertificate) -> User:
    """Return the user that a verified leaf certificate names."""
    identity = certificate.identity
    return User(identity.name, identity.role, identity.trust_domain, certificate)


def why_no_user(user: User, trust_domain: str) -> Refused | None:
    """Return None for a user of ``trust_domain``, else the refusal.

    Only users open streams. Nodes and servers open none.
    """
    if user.trust_domain != trust_domain:
        return Refused(
            Reason.WRONG_TRUST_DOMAIN,
            f"the certificate is from the trust domain {user.trust_domain}, this server's is {trust_domain}",
        )
    if user.role is not Role.USER:
        return Refused(
            Reason.WRONG_ROLE,
            f"the certificate is the {user.role.value} {user.name}'s, and only a user's may open streams; "
            "get one with `qanat-server issue user NAME`",
        )
    return None
