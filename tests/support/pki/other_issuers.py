"""Certificates that Qanat never makes, signed by the authority that the tests trust."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.ca import Authority, Leaf
from certs.x509 import Credential
from tests.support.pki import authority as pki

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
_HOUR = datetime.timedelta(hours=1)


def signed(
    *uris: str,
    usages: Sequence[x509.ObjectIdentifier] = (CLIENT,),
    names: Sequence[str] = (),
    common_name: str = "",
    begins: datetime.timedelta = -_HOUR,
    authority: Authority | None = None,
) -> Leaf:
    """Return a leaf with these URI SANs, DNS names and addresses. ``begins`` counts from now."""
    authority = authority or pki.authority()
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(authority.issuing.certificate_pem)
    start = datetime.datetime.now(datetime.UTC) + begins
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateBuilder(
        issuer.subject, x509.Name(subject), key.public_key(), x509.random_serial_number()
    )
    builder = builder.not_valid_before(start).not_valid_after(start + 2 * _HOUR)
    san = [*map(x509.UniformResourceIdentifier, uris), *map(_general_name, names)]
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    signer = serialization.load_pem_private_key(authority.issuing.key_pem, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    pem = builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = pem + authority.issuing.certificate_pem
    return Leaf(Credential(pem, key_pem), chain, pki.authority().roots_pem)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.RFC822Name(name) if "@" in name else x509.DNSName(name)
