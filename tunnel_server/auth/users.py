"""Who is a user of this server: what follows from a proven certificate. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused

if TYPE_CHECKING:
    from certs.x509 import VerifiedCertificate


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated person or program. ``proven`` is the certificate that says so, where there is one."""

    name: str
    role: Role
    trust_domain: str
    proven: VerifiedCertificate | None = None


@dataclass(frozen=True, slots=True)
class Administrator(User):
    """A user that the file mode of the admin socket has let in, and that may do everything there."""


def user_of(proven: VerifiedCertificate) -> User:
    """The user that a proven leaf certificate names."""
    identity = proven.identity
    return User(identity.name, identity.role, identity.trust_domain, proven)


def why_no_user(user: User, trust_domain: str) -> Refused | None:
    """None for a user of our trust domain. Everybody else opens nothing: nodes least of all."""
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
