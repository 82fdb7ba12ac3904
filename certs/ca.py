"""The certificate authority: a root that can be kept offline, and an issuing intermediate that signs leaves.

``authority_folder`` stores the authority on disk, and ``rotation`` describes its replacement.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from certs.requests import CertificateRequest, require_names
from certs.signing import LeafProfile, certify_key, make_issuing, make_leaf, make_root
from certs.validity import BACK_DATED
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

ROOT_DAYS = 3652  # Ten years.
ISSUING_DAYS = 1826  # Five years.
LEAF_DAYS = 365
"""Validity of certificates that a command issues."""
NODE_LIFE_SECONDS = 30 * 24 * 3600.0
"""Validity of certificates that nodes request. Agents renew them at two thirds."""
LOOPBACK_NAMES = (LOOPBACK, "127.0.0.1", "::1")
DEFAULT_TRUST_DOMAIN = "qanat.internal"


class AuthorityError(Exception):
    """The authority is missing, damaged, or unable to issue a certificate. The text names the remedy."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """An issued leaf with its key, its chain (leaf first, no root), and the roots for verifying peers."""

    credential: Credential
    chain_pem: bytes
    roots_pem: bytes


@dataclass(frozen=True, slots=True)
class Certified:
    """A leaf for a key that stays with the requester. ``root_pin`` is the pin of its root."""

    facts: CertificateFacts
    chain_pem: bytes
    roots_pem: bytes
    root_pin: bytes


@dataclass(frozen=True, slots=True)
class Authority:
    """Issuer of leaves of one trust domain. The first root in ``roots_pem`` signed ``issuing``."""

    trust_domain: str
    issuing: Credential
    roots_pem: bytes

    @property
    def root_pin(self) -> bytes:
        """Pin of the root to which this authority's leaves lead."""
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
        """Issue a leaf with a new key for ``name`` in ``role``.

        ``names`` are a server's DNS names and addresses. Raises ``ValueError`` for a name that no identity
        may have. Raises ``AuthorityError`` if the leaf would outlive the issuing certificate, because it
        would stop working before its end.
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
        """Issue a leaf of ``identity`` for the key of a request, valid from an hour ago for ``life_seconds``.

        If the issuing certificate ends sooner, the leaf ends with it. A refusal instead would stop the
        renewals of a fleet weeks before that day.

        Raises ``RequestRefused`` if the request has another name, ``AuthorityError`` if the issuing
        certificate has ended, and ``ValueError`` for an identity of another trust domain.
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
        """Issue a leaf with the key and the names of ``certificate_pem``, valid from now.

        The key stays, so only one file has to change, and that change is atomic. Raises ``AuthorityError``,
        or ``ValueError`` if ``certificate_pem`` cannot be read.
        """
        description, facts = describe(certificate_pem), facts_of(certificate_pem)
        validity = _validity(days, now)
        self._refuse_to_outlive(validity)
        profile = LeafProfile(facts.identity, usage_of(facts.identity.role), validity, description.names)
        leaf_pem = certify_key(self.issuing, profile, public_key_of(certificate_pem))
        chain = leaf_pem + self.issuing.certificate_pem
        return Certified(facts_of(leaf_pem), chain, self.roots_pem, self.root_pin)

    def days_left(self, now: datetime.datetime) -> float:
        """Return the longest possible validity of a leaf, in days."""
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
    """A new root and issuing intermediate, both with keys."""

    root: Credential
    authority: Authority


def usage_of(role: Role) -> Usage:
    """Return the only usage of a leaf in this role."""
    return Usage.SERVER if role is Role.SERVER else Usage.CLIENT


def create_authority(trust_domain: str, *, now: datetime.datetime | None = None) -> NewAuthority:
    """Create a root and an issuing intermediate for a trust domain."""
    root = make_root(trust_domain, _validity(ROOT_DAYS, now))
    issuing = create_issuing(root, trust_domain, now=now)
    return NewAuthority(root, Authority(trust_domain, issuing, root.certificate_pem))


def create_issuing(
    root: Credential, trust_domain: str, *, now: datetime.datetime | None = None
) -> Credential:
    """Create another issuing intermediate under a root. It does not outlive the root.

    Raises ``AuthorityError`` if the root has ended.
    """
    wanted = _validity(ISSUING_DAYS, now)
    ends = min(wanted.ends, describe(root.certificate_pem).ends)
    if ends <= wanted.begins + BACK_DATED:
        raise AuthorityError(f"the root has ended on {as_minute(ends)}; add a new root: ca rotate add")
    return make_issuing(root, trust_domain, Validity(wanted.begins, ends))


def default_trust_domain(first_name: str) -> str:
    """Return the trust domain of a server: its first name, or a fixed one for a local name or an address."""
    if not is_node_name(first_name) or _is_address(first_name) or first_name.split(".")[-1] == LOOPBACK:
        return DEFAULT_TRUST_DOMAIN
    return first_name


def canonical_name(text: str) -> str:
    """Return a server's DNS name or address (IPv6 with or without brackets) in normal form.

    Raises ``ValueError``.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if _is_address(bare) and "%" not in bare:  # A zone has no meaning on another machine.
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
