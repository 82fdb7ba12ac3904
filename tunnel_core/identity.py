"""Identities: SPIFFE IDs, which come only from the URI SAN of a verified leaf certificate.

https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md, but narrower. The path is exactly
``/node/<name>``, ``/server/<replica>`` or ``/user/<name>``. A path that is empty, or has upper case,
percent-encoding or dot segments, is refused and not normalised.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from tunnel_core.names import is_node_name

_TRUST_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?")
_USER = re.compile(r"[a-z0-9]([a-z0-9._@-]{0,126}[a-z0-9])?")


class Role(enum.Enum):
    """The kind of an identity, as in the path of its SPIFFE ID."""

    NODE = "node"
    SERVER = "server"
    USER = "user"


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """An identity. Construct with :meth:`parse` or directly; both validate and raise ``ValueError``."""

    trust_domain: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain) or ".." in self.trust_domain:
            raise ValueError(f"not a trust domain: {self.trust_domain!r}")
        if not is_identity_name(self.role, self.name):
            raise ValueError(f"not a {self.role.value} name: {self.name!r}")

    @classmethod
    def parse(cls, uri: str) -> SpiffeId:
        """Parse ``spiffe://<trust-domain>/<role>/<name>``. Raises ``ValueError`` with the mistake."""
        scheme, separator, rest = uri.partition("://")
        if scheme != "spiffe" or not separator:
            raise ValueError(f"not a SPIFFE ID: {uri[:300]!r}")
        parts = rest.split("/")
        if len(parts) != 3:
            raise ValueError(f"not spiffe://trust-domain/role/name: {uri[:300]!r}")
        domain, role, name = parts
        if role not in {member.value for member in Role}:
            raise ValueError(f"no such role: {role[:60]!r}")
        return cls(domain, Role(role), name)

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/{self.role.value}/{self.name}"


_NAME_RULES = {
    Role.NODE: "a node name has lower-case letters, digits, '-' and dots, as in shop-7.example.com",
    Role.SERVER: "a replica's name is written like a node's: lower-case letters, digits, '-' and dots",
    Role.USER: "a user name has lower-case letters, digits and '.', '_', '@', '-', as in kim@example.com",
}


def why_no_name(role: Role, name: str) -> str:
    """Return a sentence that quotes an invalid name and states the rule for this role."""
    return f"{name[:200]!r} is not a {role.value} name: {_NAME_RULES[role]}"


def is_identity_name(role: Role, name: str) -> bool:
    """Whether ``name`` is valid in an identity of this role."""
    if role is Role.USER:
        return _USER.fullmatch(name) is not None and ".." not in name
    return is_node_name(name)
