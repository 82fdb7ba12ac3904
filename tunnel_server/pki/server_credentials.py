"""Read and check the server's certificate, key and roots. Errors name the file, the cause and the remedy."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from certs import authority_folder
from certs.bundle import MAX_ROOTS, split_pem
from certs.files import KeyFileError, read_private, read_public
from certs.x509 import Description, describe, is_private_key, is_signed_by
from tunnel_core.carrier.interface import ServerTls
from tunnel_core.config.paths import with_rights_hint
from tunnel_core.humanize import as_minute
from tunnel_core.telemetry.logs import log_event
from tunnel_core.text_files import NotPlainText
from tunnel_server.config import Tls
from tunnel_server.listeners.tls import TlsContexts, TlsFiles, make_context

_log = logging.getLogger("qanat.server")

_WARN_BEFORE = timedelta(days=30)


class BadCredentials(Exception):  # noqa: N818 - named by what happened
    """The server cannot use these files. The text names the file, the cause and the remedy."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The certificate, key and roots of both TLS listeners, which were usable when they were read."""

    tls: ServerTls
    certificate_file: Path
    description: Description

    def expired(self, now: datetime) -> bool:
        """Whether the certificate has expired at ``now`` (UTC)."""
        return now >= self.description.ends

    def roots_to_send(self) -> bytes:
        """Return the roots (PEM) that agents are to trust: all roots of the trust file.

        The result is empty, and a warning is logged, if the file has too many roots or other text among them.
        """
        try:
            roots = list(dict.fromkeys(split_pem(self.tls.roots_pem)))
        except ValueError as error:
            _log.warning("the roots in the trust file are not sent to agents: %s", error)
            return b""
        if len(roots) > MAX_ROOTS:
            _log.warning("%d roots are not sent to agents: the most is %d", len(roots), MAX_ROOTS)
            return b""
        return b"".join(roots)

    def log(self, now: datetime) -> None:
        """Log the certificate, as a warning if it expires within 30 days of ``now`` (UTC)."""
        left = self.description.ends - now
        fields = {
            "file": self.certificate_file,
            "serial": self.description.serial,
            "names": ", ".join(self.description.names),
            "ends": as_minute(self.description.ends),
        }
        if left > _WARN_BEFORE:
            log_event(_log, logging.INFO, "server certificate", **fields)
        else:
            sentence = f"the server's certificate expires in {left.days} days: replace it, then send SIGHUP"
            log_event(_log, logging.WARNING, sentence, **fields)

    def log_other_roots(self, authority: Path) -> None:
        """Log a warning if the trust file has roots besides those of the authority in this folder.

        The root of the server's own certificate is not counted, because tokens need it there.
        """
        try:
            own = split_pem(authority_folder.roots_of(authority, authority_folder.read_rotation(authority)))
            chain, beside = split_pem(self.tls.chain_pem), set(split_pem(self.tls.roots_pem)) - set(own)
            others = [root for root in beside if not is_signed_by(chain, root)]
        except (OSError, ValueError):
            return  # there is no authority, or the signer logs why the authority cannot be used
        if others:
            risk = "each vouches for every node, user and server"
            cure = "if it is for users alone, name a file with it in [tls] user_trust_file instead"
            sentence = f"{len(others)} roots of the trust file are not of this authority: {risk}; {cure}"
            log_event(_log, logging.WARNING, sentence, folder=authority)


def tls_files(tls: Tls) -> TlsFiles:
    """Return the files of every TLS listener, without the roots that vouch for users alone."""
    return TlsFiles(tls.certificate_file, tls.key_file, tls.trust_file, tls.min_version.value)


def read_credentials(tls: Tls, now: datetime) -> Credentials:
    """Read and check the files of ``tls``. ``now`` is UTC. Raises ``BadCredentials``."""
    key_pem, chain_pem, description = read_pair(tls.certificate_file, tls.key_file)
    server_tls = ServerTls(key_pem=key_pem, chain_pem=chain_pem, roots_pem=_read(tls.trust_file))
    _describe(tls.trust_file, server_tls.roots_pem)
    if tls.user_trust_file is not None:
        _describe(tls.user_trust_file, _read(tls.user_trust_file))
    _check_dates(tls.certificate_file, description, now)
    _check_as_a_whole(tls)
    return Credentials(server_tls, tls.certificate_file, description)


def read_pair(certificate_file: Path, key_file: Path) -> tuple[bytes, bytes, Description]:
    """Return the key, the chain (both PEM), and the description of the certificate.

    Raises ``BadCredentials`` for files that cannot be read, or a certificate without names of hosts. Whether
    the two belong together is left to OpenSSL.
    """
    key_pem, chain_pem = _read_key(key_file, certificate_file), _read(certificate_file)
    description = _describe(certificate_file, chain_pem)
    _check_names(certificate_file, description)
    return key_pem, chain_pem, description


def make_contexts(files: TlsFiles) -> TlsContexts:
    """Return the TLS contexts of these files. Raises ``BadCredentials``, also for a damaged authority."""
    try:
        return TlsContexts(files)
    except OSError as error:
        sentence = f"{error.filename or files.authority} cannot be used: {error.strerror}"
        raise BadCredentials(sentence) from error
    except ValueError as error:
        raise BadCredentials(f"{error}; restore it from a backup") from error


def _read(path: Path) -> bytes:
    try:
        return read_public(path)
    except FileNotFoundError:
        cure = "make one with `qanat-server init`, or correct [tls] in the configuration"
        raise BadCredentials(f"there is no file {path}: {cure}") from None
    except OSError as error:
        raise BadCredentials(f"{path} cannot be read: {with_rights_hint(error)}") from None
    except NotPlainText as error:
        raise BadCredentials(f"{path} {error}") from None


def _read_key(path: Path, certificate_file: Path) -> bytes:
    _read(path)  # for its error messages
    try:
        pem = read_private(path)
    except KeyFileError as error:
        raise BadCredentials(str(error)) from None
    if b"ENCRYPTED" in pem:
        raise BadCredentials(f"the key in {path} is encrypted; the server needs a plain one, of mode 0600")
    if not is_private_key(pem):
        cure = (
            f"put the key of the certificate in {certificate_file} there, or `qanat-server restore` a backup"
        )
        raise BadCredentials(f"{path} holds no private key (PEM) that can be read: {cure}")
    return pem


def _describe(path: Path, pem: bytes) -> Description:
    try:
        return describe(pem)
    except ValueError:
        raise BadCredentials(f"{path} holds no certificate (PEM) that can be read") from None


def _check_names(path: Path, description: Description) -> None:
    if not description.names:
        why = "names no DNS name or address, so no agent or user could verify this server"
        raise BadCredentials(f"the certificate in {path} ({description.subject}) {why}")


def _check_dates(path: Path, description: Description, now: datetime) -> None:
    clock = f"this machine's clock says {as_minute(now)}"
    if now >= description.ends:
        when = f"expired at {as_minute(description.ends)}"
        raise BadCredentials(f"the certificate in {path} {when}; {clock}; put a new one there")
    if now < description.begins:
        when = f"is not valid before {as_minute(description.begins)}"
        raise BadCredentials(f"the certificate in {path} {when}; {clock}; is that right?")


def _check_as_a_whole(tls: Tls) -> None:
    """Check what only OpenSSL can check. Its errors name no file, so find the file that it cannot use."""
    try:
        make_context(replace(tls_files(tls), user_trust_file=tls.user_trust_file))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = f"the key in {tls.key_file} is not that of the certificate in {tls.certificate_file}"
            raise BadCredentials(why) from None
        trust_files = [file for file in (tls.trust_file, tls.user_trust_file) if file is not None]
        file = next(filter(_is_unusable, trust_files), tls.certificate_file)
        raise BadCredentials(f"TLS cannot use {file}: {error}; put PEM certificates there") from None


def _is_unusable(trust_file: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(trust_file)
    except ssl.SSLError:
        return True
    return False
