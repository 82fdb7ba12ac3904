"""What a node believes of a server before and after it knows the roots: TLS contexts, and the pin of a token.

The first contact cannot verify the server: all that a token has of the root is a digest of its key. So the
roots are fetched from whoever answers, the pinned one is picked out, and everything that follows, the
token above all, goes over new connections that trust that root alone. Who sits between and shows another
authority's certificate has none with the pin, and learns nothing but that somebody wants to join.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path

from certs.x509 import is_signed_by, pin_of

_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module has no name for."""


def unverified_context() -> ssl.SSLContext:
    """Verifies nothing. Nothing secret may go over it, and nothing that comes is believed unproven."""
    context = _context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def verifying_context(roots_pem: bytes, *, client_file: Path | None = None) -> ssl.SSLContext:
    """Verifies the server by these roots, its name and the dates; shows what is in ``client_file``."""
    context = _context()
    context.load_verify_locations(cadata=roots_pem.decode())
    if client_file is not None:
        context.load_cert_chain(client_file)
    return context


def trusting_at_any_time(roots_pem: bytes) -> ssl.SSLContext:
    """Likewise, whatever this machine's clock says: to ask a server that is proven for the time."""
    context = verifying_context(roots_pem)
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    return context


def pinned_root(certificates: Iterable[bytes], pin: bytes) -> bytes | None:
    """The root (PEM) whose key has this digest, if it is among them. Raises ``ValueError``."""
    return next((one for one in roots_among(certificates) if pin_of(one) == pin), None)


def roots_among(certificates: Iterable[bytes]) -> list[bytes]:
    """Those that signed themselves. Raises ``ValueError``."""
    return [one for one in certificates if is_signed_by([one], one)]


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.options |= ssl.OP_NO_RENEGOTIATION  # tunnel_core.streams.tls cannot answer it
    context.set_alpn_protocols(["http/1.1"])
    return context
