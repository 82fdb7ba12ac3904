"""Certificates, keys and roots of a running server, reloaded on SIGHUP and after a rotation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from certs.authority_folder import retired_keys
from certs.rotation import RotationStep
from certs.x509 import Description
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.config import ServerConfig
from tunnel_server.pki.enrolment.signer import Signer, load_signer
from tunnel_server.pki.rotation_steps import AUTHORITY_FOLDER
from tunnel_server.pki.server_credentials import BadCredentials, make_contexts, read_credentials, tls_files
from tunnel_server.pki.web_certificates import open_web_certificates

_log = logging.getLogger("qanat.server")


class ServerCertificates:
    """Certificates and roots of the TLS listeners, from the last reading of the files.

    ``agents_alpn`` is the protocol of the agents' listener, and ``wall`` gives UTC. Raises ``BadCredentials``
    if the server cannot use the files.
    """

    def __init__(self, config: ServerConfig, agents_alpn: str, wall: Callable[[], datetime]) -> None:
        self._tls = config.tls
        self._authority = config.data_dir / AUTHORITY_FOLDER
        self._wall = wall
        self._credentials = read_credentials(config.tls, wall())
        files = tls_files(config.tls)
        self.https = make_contexts(
            replace(files, authority=self._authority, user_trust_file=config.tls.user_trust_file)
        )
        """The TLS contexts of the listeners for users."""
        self.agents = make_contexts(replace(files, alpn=agents_alpn, requires_certificate=True))
        """The TLS contexts of the agents' listener."""
        self._trust_bundle = self._credentials.roots_to_send()
        self.web = open_web_certificates(config, wall)
        """The certificates for browsers, or None if their listener has no TLS."""

    @property
    def description(self) -> Description:
        """The server's certificate."""
        return self._credentials.description

    @property
    def trust_bundle(self) -> bytes:
        """The roots (PEM) to send to agents; empty if the server sends none."""
        return self._trust_bundle

    def is_expired(self) -> bool:
        """Whether the server's certificate has expired."""
        return self._credentials.expired(self._wall())

    def reload(self) -> None:
        """Read the files again. Raises ``BadCredentials``, ``OSError`` or ``ValueError``."""
        credentials = read_credentials(self._tls, self._wall())
        if self.web is not None:
            self.web.reload()  # keeps what it cannot use
        self.https.reload()
        self.agents.reload()
        self._credentials = credentials
        self._trust_bundle = credentials.roots_to_send()

    def log(self) -> None:
        """Log the server's certificate, with a warning if it expires within 30 days."""
        self._credentials.log(self._wall())

    def log_other_roots(self) -> None:
        """Log a warning if the trust file has roots that are not of the server's own authority."""
        self._credentials.log_other_roots(self._authority)


class ServerAuthority:
    """The authority that signs certificates, from the last reading of its files."""

    def __init__(self, config: ServerConfig) -> None:
        self._folder = config.data_dir / AUTHORITY_FOLDER
        self._trust_file = config.tls.trust_file
        self._signer = load_signer(self._folder, self._trust_file)

    def signer(self) -> Signer | None:
        """Return the current signer, or None without a usable authority."""
        return self._signer

    def reload(self) -> None:
        """Read the files again. An unusable folder leaves no signer, and is logged."""
        self._signer = load_signer(self._folder, self._trust_file)

    def retired_keys(self) -> frozenset[bytes]:
        """Return the keys of retired issuers. Raises ``OSError`` or ``ValueError``."""
        return retired_keys(self._folder)


class Reload:
    """Apply the current files to new connections and new certificates."""

    def __init__(
        self, certificates: ServerCertificates, authority: ServerAuthority, credential_watch: CredentialWatch
    ) -> None:
        self._certificates = certificates
        self._authority = authority
        self._credential_watch = credential_watch

    def reload(self) -> None:
        """Read certificate, roots and authority again. Failures are logged.

        With an unusable certificate or root nothing changes. An unusable authority leaves no signer.
        """
        try:
            self._certificates.reload()
        except (BadCredentials, OSError, ValueError) as error:
            _log.error("the certificates stay as they were: %s", error)
            return
        self._authority.reload()
        _log.info("certificates and roots were read anew")
        self._certificates.log()

    def after_rotation(self, step: RotationStep, forced: bool) -> None:
        """Reload. A forced ``RETIRE`` also ends the sessions and streams of the retired root."""
        self.reload()
        if step is not RotationStep.RETIRE or not forced:
            return
        try:
            self._credential_watch.retire(self._authority.retired_keys())
        except (OSError, ValueError) as error:
            _log.error("sessions and streams of the retired root continue until they end: %s", error)
