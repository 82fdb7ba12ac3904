"""Certificates as values: made, signed, read. The one module that knows the cryptography library."""

from __future__ import annotations

import datetime
import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tunnel_core.identity import Role, SpiffeId
from tunnel_core.reasons import Reason, Refused

_MAX_COMMON_NAME = 64  # ub-common-name, RFC 5280 appendix A

_UNREADABLE = (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


class Usage(enum.Enum):
    """What a leaf may prove in TLS. Each leaf that we issue has exactly one."""

    SERVER = ExtendedKeyUsageOID.SERVER_AUTH
    CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


class IdentityError(Refused):
    """The leaf proves no identity that may be used here."""


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate holds; both ends are aware datetimes."""

    begins: datetime.datetime
    ends: datetime.datetime


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate with its private key, both PEM."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class LeafProfile:
    """What a leaf says. ``names`` are the DNS names and addresses of a server, empty for others."""

    identity: SpiffeId
    usage: Usage
    validity: Validity
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    """What a certificate says, for messages, checks and expiry metrics."""

    subject: str
    issuer: str
    serial: str
    begins: datetime.datetime
    ends: datetime.datetime
    uris: tuple[str, ...]
    names: tuple[str, ...]
    is_authority: bool


# Reading


def identity_of_leaf(
    leaf: bytes, *, usage: Usage, role: Role | None = None, trust_domain: str = ""
) -> SpiffeId:
    """Who a leaf certificate (PEM or DER), whose key and chain TLS has proven, belongs to.

    Raises ``IdentityError`` unless it has exactly one URI SAN, that is one of our SPIFFE IDs, and
    the extended key usage asked for, and, where given, is of this role and trust domain. The path
    of the identity alone decides the role, so certificates of other issuers work as they are.
    """
    identity, usages = _read_leaf(leaf)
    if trust_domain and identity.trust_domain != trust_domain:
        raise IdentityError(
            Reason.WRONG_TRUST_DOMAIN,
            f"the certificate of {identity} is from another trust domain than {trust_domain}",
        )
    if role is not None and identity.role is not role:
        raise IdentityError(
            Reason.WRONG_ROLE, f"the certificate of {identity} is not a {role.value}'s, which is needed here"
        )
    if usage.value not in usages:
        raise IdentityError(
            Reason.WRONG_ROLE, f"the certificate of {identity} is not for TLS {usage.name.lower()} use"
        )
    return identity


def describe(certificate: bytes) -> Description:
    """What a certificate (PEM or DER; the first of a chain) says. Raises ``ValueError``."""
    loaded = _load(certificate)
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


def key_fits(credential: Credential) -> bool:
    """Whether the private key is the certificate's. Raises ``ValueError`` if either cannot be read."""
    return _load(credential.certificate_pem).public_key() == _load_key(credential.key_pem).public_key()


def _read_leaf(leaf: bytes) -> tuple[SpiffeId, frozenset[x509.ObjectIdentifier]]:
    try:
        certificate = _load(leaf)
        if _is_authority(certificate):
            raise ValueError("it is a certificate authority's")
        return SpiffeId.parse(_only_uri(certificate)), _usages(certificate)
    except _UNREADABLE as error:
        raise IdentityError(Reason.UNAUTHENTICATED, f"the certificate names no identity: {error}") from error


def _load(certificate: bytes) -> x509.Certificate:
    if certificate.lstrip()[:11] == b"-----BEGIN ":
        return x509.load_pem_x509_certificate(certificate)
    return x509.load_der_x509_certificate(certificate)


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


# Making


def make_root(trust_domain: str, validity: Validity) -> Credential:
    """A self-signed root with a new key. It signs issuing authorities only and may be kept offline."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _authority_name("root", key.public_key(), trust_domain)
    builder = _authority(name, name, key.public_key(), validity, trust_domain, path_length=1)
    return _sign(builder, key, key)


def make_issuing(root: Credential, trust_domain: str, validity: Validity) -> Credential:
    """An intermediate with a new key, signed by ``root``. It signs leaves only."""
    issuer, key = _load(root.certificate_pem), ec.generate_private_key(ec.SECP256R1())
    name = _authority_name("issuing", key.public_key(), trust_domain)
    builder = _authority(name, issuer.subject, key.public_key(), validity, trust_domain, path_length=0)
    return _sign(builder.add_extension(_key_of(issuer), critical=False), key, _load_key(root.key_pem))


def make_leaf(issuing: Credential, profile: LeafProfile) -> Credential:
    """A leaf with a new key, signed by ``issuing``."""
    issuer, key = _load(issuing.certificate_pem), ec.generate_private_key(ec.SECP256R1())
    common_name = f"{profile.identity.role.value} {profile.identity.name}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_MAX_COMMON_NAME])])
    builder = (
        _begin(subject, issuer.subject, key.public_key(), profile.validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([profile.usage.value]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_leaf_names(profile)), critical=False)
        .add_extension(_key_of(issuer), critical=False)
    )
    return _sign(builder, key, _load_key(issuing.key_pem))


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    validity: Validity,
    trust_domain: str,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    # A signing certificate carries the trust domain's own SPIFFE ID: X509-SVID, section 4.1.
    domain = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    return (
        _begin(subject, issuer, public_key, validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([domain]), critical=False)
    )


def _begin(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, validity: Validity
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity.begins)
        .not_valid_after(validity.ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _authority_name(kind: str, public_key: ec.EllipticCurvePublicKey, trust_domain: str) -> x509.Name:
    # Part of the key's digest, since OpenSSL finds issuers by name: two roots must not share one.
    digest = x509.SubjectKeyIdentifier.from_public_key(public_key).digest.hex()[:8]
    common_name = f"Qanat {kind} {digest} {trust_domain}"[:_MAX_COMMON_NAME]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_of(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _leaf_names(profile: LeafProfile) -> Iterable[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(str(profile.identity)), *map(_general_name, profile.names)]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _sign(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> Credential:
    certificate = builder.sign(signer, hashes.SHA256())
    return Credential(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not an elliptic curve key")
    return key
