"""Certificates that Qanat's authority never issues, signed by it all the same, as other issuers might."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.authority_folder import load_authority
from certs.bundle import Bundle, write_bundle
from certs.ca import Authority, create_authority
from tests.support.processes.programs import AGENTS_PORT, HTTPS_PORT, Server
from tunnel_core.identity import Role, SpiffeId

_HOUR = datetime.timedelta(hours=1)
_ANYBODY = SpiffeId("anywhere", Role.NODE, "anybody")
"""Name in a bundle's head; only the certificate counts."""


class Forger:
    """Makes bundles in ``folder``, which trust ``server`` and may be shown to it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.authority = load_authority(server.data_dir / "ca")

    def bundle(
        self,
        name: str,
        uri: str,
        *,
        authority: Authority | None = None,
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        begins: datetime.timedelta = -_HOUR,
        ends: datetime.timedelta = _HOUR,
    ) -> Path:
        """``NAME.pem``, with ``uri`` in the certificate; times are from now on."""
        issuer = authority or self.authority
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _signed(issuer, key.public_key(), uri, usage, begins, ends)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        bundle = Bundle(
            _ANYBODY,
            pem,
            leaf + issuer.issuing.certificate_pem,
            self.server.trust_file.read_bytes(),
            (f"{self.server.address}:{AGENTS_PORT}",),
            (f"{self.server.address}:{HTTPS_PORT}",),
        )
        path = self.folder / f"{name}.pem"
        write_bundle(path, bundle)
        return path

    def uri(self, role: Role, name: str) -> str:
        return f"spiffe://{self.server.trust_domain}/{role.value}/{name}"


def strangers_authority(trust_domain: str) -> Authority:
    """Return an authority of another owner, with the same names."""
    return create_authority(trust_domain).authority


def _signed(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    uri: str,
    usage: x509.ObjectIdentifier,
    begins: datetime.timedelta,
    ends: datetime.timedelta,
) -> bytes:
    issuer = x509.load_pem_x509_certificate(authority.issuing.certificate_pem)
    signer = serialization.load_pem_private_key(authority.issuing.key_pem, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
        .issuer_name(issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
    )
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
