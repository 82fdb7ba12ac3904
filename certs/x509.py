"""Certificates as values: their contents, and the identities that they prove.

Only this module, ``signing``, ``requests`` and ``pkcs7`` use the cryptography library. They return the values
below, bytes and texts to other modules.
"""

from __future__ import annotations

import datetime
import enum
import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused

UNREADABLE = (
    *(ValueError, TypeError, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)
"""Errors that the library raises for unreadable data, even for well-formed DER."""


_REMEMBERED_LEAVES = 256
"""Leaves that are kept as read: a user shows the same one on each connection, and reading takes 0.1 ms."""


class Usage(enum.Enum):
    """Usage of a leaf in TLS. Each leaf that this authority issues has exactly one."""

    SERVER = ExtendedKeyUsageOID.SERVER_AUTH
    CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


class IdentityError(Refused):
    """The leaf has no identity that is accepted here. ``identity`` and ``serial`` are the leaf's or empty."""

    def __init__(
        self, reason: Reason, detail: str, identity: SpiffeId | None = None, serial: str = ""
    ) -> None:
        super().__init__(reason, detail)
        self.identity = identity
        self.serial = serial
        if identity is not None:
            self.who = {identity.role.value: identity.name, "serial": serial}

    @classmethod
    def of(cls, verified: VerifiedCertificate, refused: Refused) -> IdentityError:
        """Return the refusal together with the identity of ``verified``."""
        return cls(refused.reason, refused.detail, verified.identity, verified.serial)


@dataclass(frozen=True, slots=True)
class Validity:
    """Validity of a certificate. Both times are aware datetimes."""

    begins: datetime.datetime
    ends: datetime.datetime


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate with its private key, both PEM."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Description:
    """Contents of a certificate, for messages, checks and expiry metrics."""

    subject: str
    issuer: str
    serial: str
    begins: datetime.datetime
    ends: datetime.datetime
    uris: tuple[str, ...]
    names: tuple[str, ...]
    is_authority: bool


@dataclass(frozen=True, slots=True)
class VerifiedCertificate:
    """Identity of a leaf that TLS has verified, and the facts by which it may end or be revoked."""

    identity: SpiffeId
    serial: str
    """Hex, lower case, without leading zeros."""
    ends: datetime.datetime
    issuer_key: bytes = b""
    """Identifier of the signing key in the leaf (RFC 5280, section 4.2.1.1), empty without one."""


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """Facts that the store records about an issued leaf."""

    identity: SpiffeId
    serial: str
    """Hex, lower case, without leading zeros."""
    begins: datetime.datetime
    ends: datetime.datetime
    key_sha256: str
    """SHA-256 of the SubjectPublicKeyInfo, in hex."""


# Reading


def proven_leaf(
    leaf: bytes, *, usage: Usage, role: Role | None = None, trust_domain: str = ""
) -> VerifiedCertificate:
    """Return the identity of a leaf (PEM or DER) whose key and chain TLS has verified.

    The path of the identity alone determines the role, so that certificates of other issuers work.
    Raises ``IdentityError`` unless the leaf has exactly one URI SAN that is a SPIFFE ID of this product, and
    the extended key usage ``usage``. ``role`` and ``trust_domain`` must match if they are given.
    """
    verified, usages = _read_leaf(leaf)
    identity, reason = verified.identity, Reason.WRONG_ROLE
    if trust_domain and identity.trust_domain != trust_domain:
        reason, why = Reason.WRONG_TRUST_DOMAIN, f"is from another trust domain than {trust_domain}"
    elif role is not None and identity.role is not role:
        why = f"is not a {role.value}'s, which is needed here"
    elif usage.value not in usages:
        why = f"is not for TLS {usage.name.lower()} use"
    else:
        return verified
    raise IdentityError(reason, f"the certificate of {identity} {why}", identity, verified.serial)


def describe(certificate: bytes) -> Description:
    """Return the contents of a certificate (PEM or DER; the first of a chain). Raises ``ValueError``."""
    try:
        return _describe(load_certificate(certificate))
    except UNREADABLE as error:
        raise ValueError(f"the certificate cannot be read: {error}"[:300]) from error


def _describe(loaded: x509.Certificate) -> Description:
    names = _alternative_names(loaded)
    return Description(
        subject=_human_name(loaded.subject),
        issuer=_human_name(loaded.issuer),
        serial=f"{loaded.serial_number:x}",
        begins=loaded.not_valid_before_utc,
        ends=loaded.not_valid_after_utc,
        uris=tuple(names.get_values_for_type(x509.UniformResourceIdentifier)) if names else (),
        names=_hosts(names) if names else (),
        is_authority=_is_authority(loaded),
    )


def facts_of(leaf: bytes) -> CertificateFacts:
    """Return the facts about an issued leaf (PEM or DER) for the store.

    Raises ``ValueError`` if the leaf has no identity or cannot be read.
    """
    try:
        loaded = load_certificate(leaf)
        return CertificateFacts(
            identity=SpiffeId.parse(_only_uri(loaded)),
            serial=f"{loaded.serial_number:x}",
            begins=loaded.not_valid_before_utc,
            ends=loaded.not_valid_after_utc,
            key_sha256=_key_digest(loaded).hex(),
        )
    except UNREADABLE as error:
        raise ValueError(f"the certificate cannot be read, or names no identity: {error}") from error


def pin_of(certificate: bytes) -> bytes:
    """Return the SHA-256 of a certificate's SubjectPublicKeyInfo, 32 bytes. A join token has it as root pin.

    Raises ``ValueError``.
    """
    try:
        return _key_digest(load_certificate(certificate))
    except UNREADABLE as error:
        raise ValueError(f"the certificate cannot be read: {error}"[:300]) from error


def is_signed_by(chain: Sequence[bytes], root: bytes) -> bool:
    """Whether each certificate of a chain (leaf first) is signed by the next, and the last by ``root``.

    This checks signatures and names only, because TLS checks dates and usages. Raises ``ValueError``.
    """
    loaded = [load_certificate(certificate) for certificate in (*chain, root)]
    try:
        for subject, issuer in itertools.pairwise(loaded):
            subject.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True


def key_fits(credential: Credential) -> bool:
    """Whether the private key belongs to the certificate. Raises ``ValueError`` if one cannot be read."""
    return (
        load_certificate(credential.certificate_pem).public_key()
        == load_signing_key(credential.key_pem).public_key()
    )


def key_identifier_of(authority: bytes) -> bytes:
    """Return the identifier by which leaves name an authority's key; empty if the certificate has none."""
    try:
        extensions = load_certificate(authority).extensions
        return extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return b""


def public_key_of(certificate: bytes) -> bytes:
    """Return a certificate's SubjectPublicKeyInfo, DER."""
    return _public_key(load_certificate(certificate))


def _key_digest(certificate: x509.Certificate) -> bytes:
    return hashlib.sha256(_public_key(certificate)).digest()


def _public_key(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@functools.lru_cache(_REMEMBERED_LEAVES)
def _read_leaf(leaf: bytes) -> tuple[VerifiedCertificate, frozenset[x509.ObjectIdentifier]]:
    try:
        certificate = load_certificate(leaf)
        if _is_authority(certificate):
            raise ValueError("it is a certificate authority's")
        identity, serial = SpiffeId.parse(_only_uri(certificate)), f"{certificate.serial_number:x}"
        ends = certificate.not_valid_after_utc
        return VerifiedCertificate(identity, serial, ends, _issuer_key(certificate)), _usages(certificate)
    except UNREADABLE as error:
        raise IdentityError(Reason.UNAUTHENTICATED, f"the certificate names no identity: {error}") from error


def load_certificate(certificate: bytes) -> x509.Certificate:
    """Load a certificate (PEM, the first of a chain, or DER) as the library's value."""
    if certificate.lstrip()[:11] == b"-----BEGIN ":
        return x509.load_pem_x509_certificate(certificate)
    return x509.load_der_x509_certificate(certificate)


def load_signing_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Load a private key as the library's value. Raises ``ValueError``."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not an elliptic curve key")
    return key


def is_private_key(pem: bytes) -> bool:
    """Whether ``pem`` is an unencrypted private key of any kind."""
    try:
        serialization.load_pem_private_key(pem, password=None)
    except (*UNREADABLE, TypeError):
        return False
    return True


def _only_uri(certificate: x509.Certificate) -> str:
    names = _alternative_names(certificate)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if len(uris) != 1:
        raise ValueError(f"it has {len(uris)} URI names and must have exactly one")
    return uris[0]


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def _usages(certificate: x509.Certificate) -> frozenset[x509.ObjectIdentifier]:
    try:
        return frozenset(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return frozenset()


def _issuer_key(certificate: x509.Certificate) -> bytes:
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        return b""
    return found.key_identifier or b""


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _hosts(names: x509.SubjectAlternativeName) -> tuple[str, ...]:
    return tuple(str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress))


def _human_name(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if common else name.rfc4514_string()
