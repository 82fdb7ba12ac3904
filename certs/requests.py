"""Certificate requests (PKCS #10): created on the node, where the key stays, and read by the server.

The server takes only the key from a request, after its proof of possession. The identity comes from the token
or from the current certificate, and the server sets the profile. A request for anything else is refused, and
not silently overruled:

1. The common name and the alternative names may be missing. A common name must be the name alone, or the form
   that the server writes (``node shop-7``). A URI must be the identity, and a DNS name must be the name.
2. A request for a certificate authority, or for names of another kind, is refused.
3. The server ignores requested usages and sets the usage of the role, because standard clients request all.

Keys are EC P-256 and P-384, and RSA from 2048 to 8192 bits. Ed25519 is refused, because BoringSSL, the TLS of
gRPC, does not accept it from a peer by default, and gRPC has no option for it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from certs.signing import MAX_COMMON_NAME, common_name_of, private_pem
from certs.x509 import UNREADABLE
from tunnel_core.identity import SpiffeId
from tunnel_core.reasons import Reason, Refused

MAX_REQUEST_BYTES = 16 * 1024
"""Bytes of a certificate request as it arrives. One with a key of RSA 8192 in PEM takes some 5 KiB."""
_RSA_BITS = range(2048, 8192 + 1)
"""Bits of an RSA key in a certificate request."""
_MIN_EXPONENT = 65537  # NIST SP 800-56B, section 6.2
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_DIGESTS = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_ARMOUR = re.compile(rb"-----(BEGIN|END) (NEW )?CERTIFICATE REQUEST-----")


class RequestRefused(Refused):
    """The server refuses the request. The sentence has the reason."""


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A node's new key (PEM), which never leaves the node, and the request for the server (DER)."""

    key_pem: bytes = field(repr=False)
    request_der: bytes

    @property
    def body(self) -> bytes:
        """Body of an EST call: the request as base64 in lines (RFC 7030, section 4.2.1)."""
        return base64.encodebytes(self.request_der)


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """Contents of a request whose requester has proven possession of the key."""

    public_key_der: bytes
    """SubjectPublicKeyInfo, DER."""
    common_names: tuple[str, ...]
    uris: tuple[str, ...]
    dns_names: tuple[str, ...]

    @property
    def key_sha256(self) -> str:
        """SHA-256 of the key's SubjectPublicKeyInfo, in hex."""
        return hashlib.sha256(self.public_key_der).hexdigest()


def make_request(identity: SpiffeId) -> NewRequest:
    """Create a key (EC P-256) and a request for a certificate of ``identity``."""
    return request_for(ec.generate_private_key(ec.SECP256R1()), identity)


def request_for(key: ec.EllipticCurvePrivateKey, identity: SpiffeId) -> NewRequest:
    """Create a request for an existing key."""
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name_of(identity))]
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    builder = x509.CertificateSigningRequestBuilder(x509.Name(subject)).add_extension(names, critical=False)
    request = builder.sign(key, hashes.SHA256())
    return NewRequest(private_pem(key), request.public_bytes(serialization.Encoding.DER))


def read_request(data: bytes) -> CertificateRequest:
    """Parse an untrusted request in DER, in PEM, or in base64 as in EST.

    Raises ``RequestRefused`` with ``BAD_CSR`` or ``WEAK_KEY``.
    """
    if len(data) > MAX_REQUEST_BYTES:
        raise _bad(f"the certificate request is larger than {MAX_REQUEST_BYTES // 1024} KiB")
    try:
        return _read(x509.load_der_x509_csr(_der_of(data)))
    except UNREADABLE as error:
        raise _bad(f"the certificate request cannot be read: {error}"[:300]) from None


def require_names(request: CertificateRequest, identity: SpiffeId) -> None:
    """Raise ``RequestRefused`` for a request that has another name than ``identity``."""
    allowed = {identity.name[:MAX_COMMON_NAME], common_name_of(identity)}
    foreign = [
        *(name for name in request.common_names if name not in allowed),
        *(name for name in request.dns_names if name.lower() != identity.name),
        *(uri for uri in request.uris if uri != str(identity)),
    ]
    if foreign:
        raise RequestRefused(
            Reason.CSR_NAME_MISMATCH,
            f"the certificate request names {foreign[0][:300]!r}, but this is for {identity}",
        )


def _der_of(data: bytes) -> bytes:
    text = data.strip()
    if data[:1] == b"\x30" and not _is_base64(text):  # Tag of a SEQUENCE, also the ASCII digit 0.
        return data
    lines = text.splitlines()
    if lines and _ARMOUR.fullmatch(lines[0].strip()) and _ARMOUR.fullmatch(lines[-1].strip()):
        text = b"".join(lines[1:-1])
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        raise ValueError("it is neither DER, nor PEM, nor base64") from None


def _is_base64(text: bytes) -> bool:
    return re.fullmatch(rb"[A-Za-z0-9+/=\s]+", text) is not None


def _read(request: x509.CertificateSigningRequest) -> CertificateRequest:
    key = request.public_key()
    _require_key(key)
    if not isinstance(request.signature_hash_algorithm, _DIGESTS):
        raise _weak("the certificate request must be signed with SHA-256, SHA-384 or SHA-512")
    if not request.is_signature_valid:
        raise _bad("the certificate request is not signed with its own key")
    _require_extensions(request.extensions)
    names = _alternative_names(request.extensions)
    return CertificateRequest(
        public_key_der=key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        common_names=tuple(
            str(name.value) for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        ),
        uris=tuple(str(name.value) for name in names if isinstance(name, x509.UniformResourceIdentifier)),
        dns_names=tuple(str(name.value) for name in names if isinstance(name, x509.DNSName)),
    )


def _require_key(key: object) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, _CURVES):
            raise _weak(f"keys on the curve {key.curve.name} are not accepted: use P-256 or P-384")
    elif isinstance(key, rsa.RSAPublicKey):
        if key.key_size not in _RSA_BITS:
            raise _weak(f"an RSA key of {key.key_size} bits is not accepted: use 2048 to 8192")
        if key.public_numbers().e < _MIN_EXPONENT:
            raise _weak("an RSA key with a public exponent below 65537 is not accepted")
    else:
        raise _weak("keys of this kind are not accepted: use EC P-256 or P-384, or RSA of 2048 bits or more")


def _require_extensions(extensions: x509.Extensions) -> None:
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            raise _bad("the certificate request asks for a certificate authority (CA:TRUE)")
        if isinstance(value, x509.KeyUsage) and (value.key_cert_sign or value.crl_sign):
            raise _bad("the certificate request asks for a key that signs certificates")
        if isinstance(value, x509.UnrecognizedExtension) and extension.critical:
            oid = extension.oid.dotted_string
            raise _bad(f"the certificate request has the unknown critical extension {oid}")


def _alternative_names(extensions: x509.Extensions) -> list[x509.GeneralName]:
    try:
        names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []
    for name in names:
        if not isinstance(name, x509.UniformResourceIdentifier | x509.DNSName):
            raise _bad("the certificate request asks for an alternative name other than a URI or a DNS name")
    return names


def _bad(sentence: str) -> RequestRefused:
    return RequestRefused(Reason.BAD_CSR, sentence)


def _weak(sentence: str) -> RequestRefused:
    return RequestRefused(Reason.WEAK_KEY, sentence)
