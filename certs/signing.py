"""Creation of certificates: roots, issuing intermediates, and leaves for new or given keys."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from certs.x509 import Credential, Usage, Validity, load_certificate, load_signing_key
from tunnel_core.identity import SpiffeId

MAX_COMMON_NAME = 64  # ub-common-name, RFC 5280 appendix A

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class LeafProfile:
    """Contents of a leaf. ``names`` are the DNS names and addresses of a server, empty for other roles."""

    identity: SpiffeId
    usage: Usage
    validity: Validity
    names: tuple[str, ...] = ()


def common_name_of(identity: SpiffeId) -> str:
    """Return the common name of a leaf's subject. It is only for display, and never an identity."""
    return f"{identity.role.value} {identity.name}"[:MAX_COMMON_NAME]


def make_root(trust_domain: str, validity: Validity) -> Credential:
    """Create a self-signed root with a new key. It signs issuing authorities only, and may stay offline."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _authority_name("root", key.public_key(), trust_domain)
    builder = _authority(name, name, key.public_key(), validity, trust_domain, path_length=1)
    return Credential(_sign(builder, key), private_pem(key))


def make_issuing(root: Credential, trust_domain: str, validity: Validity) -> Credential:
    """Create an intermediate with a new key, signed by ``root``. It signs only leaves."""
    issuer, key = load_certificate(root.certificate_pem), ec.generate_private_key(ec.SECP256R1())
    name = _authority_name("issuing", key.public_key(), trust_domain)
    builder = _authority(name, issuer.subject, key.public_key(), validity, trust_domain, path_length=0)
    builder = builder.add_extension(_key_of(issuer), critical=False)
    return Credential(_sign(builder, load_signing_key(root.key_pem)), private_pem(key))


def make_leaf(issuing: Credential, profile: LeafProfile) -> Credential:
    """Create a leaf with a new key, signed by ``issuing``."""
    key = ec.generate_private_key(ec.SECP256R1())
    return Credential(_certify(issuing, profile, key.public_key()), private_pem(key))


def certify_key(issuing: Credential, profile: LeafProfile, public_key_der: bytes) -> bytes:
    """Create a leaf (PEM) for a public key, whose private half stays with the requester."""
    key = serialization.load_der_public_key(public_key_der)
    assert isinstance(key, PublicKey), "certs.requests accepts only these kinds"
    return _certify(issuing, profile, key)


def _certify(issuing: Credential, profile: LeafProfile, public_key: PublicKey) -> bytes:
    issuer = load_certificate(issuing.certificate_pem)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name_of(profile.identity))])
    builder = (
        _begin(subject, issuer.subject, public_key, profile.validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([profile.usage.value]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_leaf_names(profile)), critical=False)
        .add_extension(_key_of(issuer), critical=False)
    )
    return _sign(builder, load_signing_key(issuing.key_pem))


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    validity: Validity,
    trust_domain: str,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    # A signing certificate has the SPIFFE ID of the trust domain itself: X509-SVID, section 4.1.
    domain = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    return (
        _begin(subject, issuer, public_key, validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([domain]), critical=False)
    )


def _begin(
    subject: x509.Name, issuer: x509.Name, public_key: PublicKey, validity: Validity
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
    # The name has a part of the key's digest, because OpenSSL finds issuers by name.
    digest = x509.SubjectKeyIdentifier.from_public_key(public_key).digest.hex()[:8]
    common_name = f"Qanat {kind} {digest} {trust_domain}"[:MAX_COMMON_NAME]
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


def _sign(builder: x509.CertificateBuilder, signer: ec.EllipticCurvePrivateKey) -> bytes:
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PKCS #8 in PEM. It has no password, because the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
