"""Sign certificates in worker threads, so that the event loop never waits for a signature."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from certs.authority_folder import load_authority, read_intermediates
from certs.bundle import split_pem
from certs.ca import Authority, AuthorityError, Certified
from certs.files import read_public
from certs.pkcs7 import certs_only
from certs.requests import CertificateRequest, read_request, require_names
from certs.x509 import is_signed_by
from tunnel_core.identity import SpiffeId
from tunnel_core.reasons import Reason, Refused
from tunnel_core.telemetry.logs import log_event

_log = logging.getLogger("qanat.enrolment")

T = TypeVar("T")

_THREADS = 2
"""Signing takes about 0.2 ms, and more threads would only take the interpreter from the event loop."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A new certificate, and the answer's body: the certificate alone (RFC 7030, section 4.2.3)."""

    certified: Certified
    body: bytes


def load_signer(folder: Path, trust_file: Path) -> Signer | None:
    """Return a signer with the authority in ``folder``; log the cause and return None if it is unusable.

    ``trust_file`` has further roots to send. Blocks.
    """
    if not folder.exists():
        sentence = "without an authority this server issues no certificates"
        log_event(_log, logging.INFO, sentence, folder=folder)
        return None
    try:
        return Signer(load_authority(folder), read_public(trust_file), read_intermediates(folder))
    except (AuthorityError, OSError, ValueError) as error:
        _log.error("this server issues no certificates: %s", error)
        return None


class Signer:
    """Signer with an authority. ``others`` are further roots (PEM) to send, for example the server's own.

    ``issuing`` are all issuing certificates (PEM) of the authority, if it had more than one.
    """

    def __init__(self, authority: Authority, others: bytes = b"", issuing: bytes = b"") -> None:
        self._authority = authority
        self._issuing = split_pem(issuing or authority.issuing.certificate_pem)
        roots = split_pem(authority.roots_pem)
        further = [root for root in split_pem(others) if root not in roots]
        sent = [*roots, *split_pem(authority.issuing.certificate_pem), *further]
        self.cacerts = certs_only(b"".join(sent))
        """The answer to EST's ``cacerts``: all roots, and the chain from a new certificate to its root."""
        self._limiter = trio.CapacityLimiter(_THREADS)

    async def read(self, body: bytes) -> CertificateRequest:
        """Parse a certificate request and check its signature. Raises ``RequestRefused``."""
        return await self._in_thread(lambda: read_request(body))

    async def sign(self, request: CertificateRequest, identity: SpiffeId, life_seconds: float) -> Signed:
        """Issue a certificate for ``identity``, valid for ``life_seconds``.

        Raises ``RequestRefused`` if the request names another identity, or ``Refused`` with
        ``AUTHORITY_UNUSABLE``.
        """

        def sign() -> Signed:
            require_names(request, identity)
            try:
                certified = self._authority.certify(request, identity, life_seconds=life_seconds)
            except AuthorityError as error:
                raise Refused(Reason.AUTHORITY_UNUSABLE, str(error)) from None
            return Signed(certified, certs_only(split_pem(certified.chain_pem)[0]))

        return await self._in_thread(sign)

    async def has_issued(self, leaf: bytes) -> bool:
        """Whether the certificate (PEM or DER) is signed by this authority."""
        return await self._in_thread(lambda: any(is_signed_by([leaf], issuer) for issuer in self._issuing))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)
