"""The certificate authority: a root that can be taken offline, and the issuing intermediate that works.

``authority_folder`` keeps it on disk, ``rotation`` says how it is replaced.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from certs.life import BACK_DATED
from certs.requests import CertificateRequest, require_names
from certs.signing import LeafProfile, certify_key, make_issuing, make_leaf, make_root
from certs.x509 import (
    CertificateFacts,
    Credential,
    Usage,
    Validity,
    describe,
    facts_of,
    pin_of,
    public_key_of,
)
from tunnel_core.humanize import as_minute
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.names import LOOPBACK, canonical_host, is_node_name

ROOT_DAYS = 3652  # ten years
ISSUING_DAYS = 1826  # five
LEAF_DAYS = 365
"""Of certificates that are made by hand, for users and servers; nobody renews those."""
NODE_LIFE_SECONDS = 30 * 24 * 3600.0
"""Of certificates that nodes ask for; they renew at two thirds of it."""
LOOPBACK_NAMES = (LOOPBACK, "127.0.0.1", "::1")
DEFAULT_TRUST_DOMAIN = "qanat.internal"


class AuthorityError(Exception):
    """The authority is missing, damaged or not able to issue this. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """An issued leaf: its key, its chain (leaf first, no root) and the roots that verify its peers."""

    credential: Credential
    chain_pem: bytes
    roots_pem: bytes


@dataclass(frozen=True, slots=True)
class Certified:
    """A leaf for a key that we do not have, to be sent to whoever has it."""

    facts: CertificateFacts
    chain_pem: bytes
    roots_pem: bytes
    root_pin: bytes


@dataclass(frozen=True, slots=True)
class Authority:
    """Issues leaves of one trust domain. The first of the roots is the one that signed ``issuing``."""

    trust_domain: str
    issuing: Credential
    roots_pem: bytes

    @property
    def root_pin(self) -> bytes:
        """Of the root that this authority's leaves lead to."""
        return pin_of(self.roots_pem)

    def issue(
        self,
        role: Role,
        name: str,
        *,
        names: Sequence[str] = (),
        days: float = LEAF_DAYS,
        now: datetime.datetime | None = None,
    ) -> Leaf:
        """A leaf for ``name`` in ``role``; ``names`` are a server's DNS names and addresses.

        Raises ``ValueError`` for a name that no identity may have, ``AuthorityError`` if the leaf
        would outlive the issuing certificate: it would fail long before the day it shows.
        """
        identity = SpiffeId(self.trust_domain, role, name)
        validity = _validity(days, now)
        self._refuse_to_outlive(validity)
        leaf = make_leaf(self.issuing, LeafProfile(identity, usage_of(role), validity, tuple(names)))
        return Leaf(leaf, leaf.certificate_pem + self.issuing.certificate_pem, self.roots_pem)

    def certify(
        self,
        request: CertificateRequest,
        identity: SpiffeId,
        *,
        life_seconds: float = NODE_LIFE_SECONDS,
        now: datetime.datetime | None = None,
    ) -> Certified:
        """A leaf of ``identity`` for the key of a request, holding from an hour ago for ``life_seconds``.

        Where the issuing certificate ends sooner the leaf ends with it: a fleet that renews must not
        come to a halt weeks before that day, as it would if such requests were refused.

        Raises ``RequestRefused`` if the request names somebody else, ``AuthorityError`` if the issuing
        certificate has ended, ``ValueError`` for an identity of another trust domain.
        """
        if identity.trust_domain != self.trust_domain:
            raise ValueError(f"{identity} is not of the trust domain {self.trust_domain}")
        require_names(request, identity)
        moment = now or datetime.datetime.now(datetime.UTC)
        ends = min(moment + datetime.timedelta(seconds=life_seconds), self._issuing_ends)
        if ends <= moment:
            raise AuthorityError(
                f"the issuing certificate has ended on {as_minute(ends)};"
                " replace it with `qanat-server ca rotate issuing`"
            )
        profile = LeafProfile(identity, usage_of(identity.role), Validity(moment - BACK_DATED, ends))
        leaf_pem = certify_key(self.issuing, profile, request.public_key_der)
        chain = leaf_pem + self.issuing.certificate_pem
        return Certified(facts_of(leaf_pem), chain, self.roots_pem, self.root_pin)

    def reissue(
        self, certificate_pem: bytes, *, days: float = LEAF_DAYS, now: datetime.datetime | None = None
    ) -> Certified:
        """A leaf that says what another does, for the same key, from this authority and from now on.

        So one file has to change, and changes whole. Raises ``AuthorityError``, or ``ValueError`` if
        the other cannot be read.
        """
        description, facts = describe(certificate_pem), facts_of(certificate_pem)
        validity = _validity(days, now)
        self._refuse_to_outlive(validity)
        profile = LeafProfile(facts.identity, usage_of(facts.identity.role), validity, description.names)
        leaf_pem = certify_key(self.issuing, profile, public_key_of(certificate_pem))
        chain = leaf_pem + self.issuing.certificate_pem
        return Certified(facts_of(leaf_pem), chain, self.roots_pem, self.root_pin)

    def days_left(self, now: datetime.datetime) -> float:
        """For how long a leaf may hold at most."""
        return (self._issuing_ends - now) / datetime.timedelta(days=1)

    @property
    def _issuing_ends(self) -> datetime.datetime:
        return describe(self.issuing.certificate_pem).ends

    def _refuse_to_outlive(self, validity: Validity) -> None:
        ends = self._issuing_ends
        if validity.ends > ends:
            raise AuthorityError(
                f"the issuing certificate ends on {as_minute(ends)}, before the new one would"
                f" ({as_minute(validity.ends)}); ask for fewer days"
            )


@dataclass(frozen=True, slots=True)
class NewAuthority:
    """A fresh root and issuing intermediate, both with keys."""

    root: Credential
    authority: Authority


def usage_of(role: Role) -> Usage:
    """The one usage of a leaf in this role."""
    return Usage.SERVER if role is Role.SERVER else Usage.CLIENT


def create_authority(trust_domain: str, *, now: datetime.datetime | None = None) -> NewAuthority:
    """A new root and issuing intermediate of a trust domain."""
    root = make_root(trust_domain, _validity(ROOT_DAYS, now))
    issuing = create_issuing(root, trust_domain, now=now)
    return NewAuthority(root, Authority(trust_domain, issuing, root.certificate_pem))


def create_issuing(
    root: Credential, trust_domain: str, *, now: datetime.datetime | None = None
) -> Credential:
    """Another issuing intermediate under a root, which it does not outlive."""
    wanted = _validity(ISSUING_DAYS, now)
    ends = min(wanted.ends, describe(root.certificate_pem).ends)
    if ends <= wanted.begins + BACK_DATED:
        raise AuthorityError(f"the root has ended on {as_minute(ends)}; a new one is due: ca rotate add")
    return make_issuing(root, trust_domain, Validity(wanted.begins, ends))


def default_trust_domain(first_name: str) -> str:
    """The trust domain of a server called ``first_name``: that DNS name, unless it is only a local one."""
    if not is_node_name(first_name) or _is_address(first_name) or first_name.split(".")[-1] == LOOPBACK:
        return DEFAULT_TRUST_DOMAIN
    return first_name


def canonical_name(text: str) -> str:
    """A server's DNS name or address (IPv6: brackets or not) in its one spelling, or ``ValueError``."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if _is_address(bare) and "%" not in bare:  # a zone means nothing on another machine
        return str(ipaddress.ip_address(bare))
    return canonical_host(text)


def _validity(days: float, now: datetime.datetime | None) -> Validity:
    begins = now or datetime.datetime.now(datetime.UTC)
    return Validity(begins - BACK_DATED, begins + datetime.timedelta(days=days))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
