"""TLS contexts before and after a node knows its server's roots, and the root that a token pins.

The first contact cannot verify the server, because a token has only a digest of the root's key. So the node
fetches the roots without verification and selects the pinned root. Everything after that, above all the
token, goes over new connections that trust only the pinned root. An attacker in between has no certificate
with the pin, and learns only that a node wants to join.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path

from certs.x509 import is_signed_by, pin_of

_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module has no name for."""


def unverified_context() -> ssl.SSLContext:
    """Return a context that verifies nothing. It must carry no secret, and its data needs other proof."""
    context = _context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def verifying_context(roots_pem: bytes, *, client_file: Path | None = None) -> ssl.SSLContext:
    """Return a context that verifies the server's chain, name and dates, and presents ``client_file``."""
    context = _context()
    context.load_verify_locations(cadata=roots_pem.decode())
    if client_file is not None:
        context.load_cert_chain(client_file)
    return context


def verifying_context_without_dates(roots_pem: bytes) -> ssl.SSLContext:
    """Return a context that ignores the dates, to ask a verified server for the time."""
    context = verifying_context(roots_pem)
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    return context


def pinned_root(certificates: Iterable[bytes], pin: bytes) -> bytes | None:
    """Return the root (PEM) whose key has the digest ``pin``, or None.

    Raises ``ValueError`` for content that is not a certificate.
    """
    return next((root for root in roots_among(certificates) if pin_of(root) == pin), None)


def roots_among(certificates: Iterable[bytes]) -> list[bytes]:
    """Return the self-signed certificates. Raises ``ValueError`` for content that is not a certificate."""
    return [pem for pem in certificates if is_signed_by([pem], pem)]


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options |= ssl.OP_NO_RENEGOTIATION  # tunnel_core.streams.tls cannot renegotiate
    context.set_alpn_protocols(["http/1.1"])
    return context
