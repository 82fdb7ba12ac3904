"""PKCS #7 with certificates only: the answers of EST (RFC 7030, sections 4.1.3 and 4.2.3).

The certificates of an answer are a set without order. The reader builds the chain: the leaf has the reader's
key, and each next certificate signed the previous one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs7

from certs.bundle import split_pem
from certs.x509 import UNREADABLE, load_certificate, load_signing_key

MAX_CERTIFICATES = 16
"""Bound for one answer, which has a leaf, an issuing certificate, and the roots of a rotation."""
_MAX_BYTES = 128 * 1024


def certs_only(certificates_pem: bytes) -> bytes:
    """Return certificates (PEM) as the body of an EST answer: base64 of the DER, in lines.

    The answer needs ``Content-Type: application/pkcs7-mime; smime-type=certs-only`` and
    ``Content-Transfer-Encoding: base64``.
    """
    loaded = [load_certificate(pem) for pem in split_pem(certificates_pem)]
    return base64.encodebytes(pkcs7.serialize_certificates(loaded, serialization.Encoding.DER))


def read_certs_only(data: bytes) -> list[bytes]:
    """Return the certificates (PEM) in an answer of EST, in any order. Raises ``ValueError``."""
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES // 1024} KiB")
    try:
        found = pkcs7.load_der_pkcs7_certificates(base64.b64decode(b"".join(data.split()), validate=True))
        pem = [certificate.public_bytes(serialization.Encoding.PEM) for certificate in found]
    except binascii.Error:
        raise ValueError("it is not base64") from None
    except UNREADABLE as error:
        raise ValueError(f"it holds no readable certificates: {error}"[:300]) from None
    if not 0 < len(pem) <= MAX_CERTIFICATES:
        raise ValueError(f"it holds {len(pem)} certificates, not 1 to {MAX_CERTIFICATES}")
    return pem


def chain_for(key_pem: bytes, certificates: Sequence[bytes]) -> bytes:
    """Return the chain of this key's leaf (PEM, leaf first, no root). Raises ``ValueError``."""
    public_key = load_signing_key(key_pem).public_key()
    try:
        loaded = [load_certificate(certificate) for certificate in certificates]
        leaves = [certificate for certificate in loaded if certificate.public_key() == public_key]
    except UNREADABLE as error:
        raise ValueError(f"a certificate cannot be read: {error}"[:300]) from None
    if len(leaves) != 1:
        raise ValueError("the answer must hold one certificate of the key that was sent")
    chain = leaves
    while (issuer := _issuer_of(chain[-1], loaded)) is not None and len(chain) <= MAX_CERTIFICATES:
        chain.append(issuer)
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain)


def _issuer_of(subject: x509.Certificate, among: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """Return the issuer of ``subject``, or None if the issuer is a root or is missing.

    A chain must not contain its root.
    """
    for issuer in among:
        is_root = issuer.subject == issuer.issuer
        if issuer.subject == subject.issuer and not is_root and _has_signed(issuer, subject):
            return issuer
    return None


def _has_signed(issuer: x509.Certificate, subject: x509.Certificate) -> bool:
    try:
        subject.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True
