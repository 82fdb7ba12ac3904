"""Certificates of the listener for browsers: the operator's files, or one from the server's own authority.

1. Each certificate has a TLS context of its own. The name that the browser asks for chooses one.
2. The files are compared with their last state every ``CHECK_SECONDS``, because programs such as certbot
   replace them without telling the server. A changed pair is read again; the other pairs stay.
3. A pair that cannot be used keeps its old context. The log has the cause once for each change, with the
   reason ``certificate_unusable``. Certificate and key are two files, so between the two writes of a renewal
   they do not fit.
4. The own certificate is issued at the start and after two thirds of its life. Its key stays in memory.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeAlias

import trio

from certs.authority_folder import load_authority, read_intermediates
from certs.ca import LEAF_DAYS, AuthorityError
from certs.files import in_memory, path_for_openssl
from certs.x509 import Description, describe
from tunnel_core.humanize import as_minute
from tunnel_core.identity import Role
from tunnel_core.reasons import Reason
from tunnel_core.telemetry.logs import log_event
from tunnel_server.config import ServerConfig, Tls
from tunnel_server.listeners.named_contexts import NamedContext, NamedContexts
from tunnel_server.listeners.tls import refuse_resumption
from tunnel_server.pki.rotation_steps import AUTHORITY_FOLDER
from tunnel_server.pki.server_credentials import BadCredentials, read_pair
from tunnel_server.web_config import Web, WebCertificate, WebLogin

CHECK_SECONDS = 10.0
"""Time between two checks of the certificate files. A check reads the files' dates."""
_RENEWED_AT = 2 / 3
_RETRY_AFTER = timedelta(hours=1)
_ALPN = ("h2", "http/1.1")
# RFC 9113 section 9.2.2: only cipher suites with ephemeral keys and authenticated encryption.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

_log = logging.getLogger("qanat.server")

_State: TypeAlias = tuple[tuple[int, int, int, int], ...]
"""Device, inode, time of the last change and size of each file."""


class _Source(Protocol):
    """Where a certificate comes from."""

    def must_read(self, now: datetime) -> bool:
        """Whether the certificate must be read again. Returns True once for each change. Blocks."""

    def read(self, now: datetime) -> tuple[NamedContext, Description]:
        """Return a new context and the certificate. Blocks. Raises ``BadCredentials``."""


class WebCertificates:
    """TLS of the listener for browsers, as ``web`` says.

    ``tls`` has the roots of users' certificates, ``authority`` is the folder of the server's own authority,
    and ``wall`` gives UTC. Raises ``BadCredentials`` if a certificate cannot be used at the start.
    """

    def __init__(self, web: Web, tls: Tls, authority: Path, wall: Callable[[], datetime]) -> None:
        users = _UserRoots(tls, authority) if web.login is WebLogin.CERTIFICATE else None
        self._sources: list[_Source] = [_Files(pair, users) for pair in web.certificate]
        if web.own_certificate:
            self._sources.append(_Own(web.domain, authority, users))
        self._wall = wall
        for source in self._sources:
            source.must_read(wall())  # what changes from now on is read again
        self._held = [self._read(source, wall()) for source in self._sources]
        self.contexts = NamedContexts(self._held)

    async def keep_current(self) -> None:
        """Read changed certificates again, until this task is cancelled."""
        while True:
            await trio.sleep(CHECK_SECONDS)
            await trio.to_thread.run_sync(self.reload_changed)

    def reload_changed(self) -> None:
        """Read again what has changed since the last call. Failures are logged. Blocks."""
        now = self._wall()
        for number, source in enumerate(self._sources):
            if source.must_read(now):
                self._reload(number, now)
        self.contexts.use(self._held)

    def reload(self) -> None:
        """Read all certificates and roots again. Failures are logged. Blocks."""
        now = self._wall()
        for number, source in enumerate(self._sources):
            source.must_read(now)
            self._reload(number, now)
        self.contexts.use(self._held)

    def _reload(self, number: int, now: datetime) -> None:
        try:
            self._held[number] = self._read(self._sources[number], now)
        except BadCredentials as error:
            _log.error(
                "a certificate for browsers stays as it was: %s",
                error,
                extra={"reason": Reason.CERTIFICATE_UNUSABLE.word},
            )

    def _read(self, source: _Source, now: datetime) -> NamedContext:
        context, description = source.read(now)
        fields = {"names": ", ".join(description.names), "ends": as_minute(description.ends)}
        if now < description.ends:
            log_event(_log, logging.INFO, "certificate for browsers", **fields)
        else:
            log_event(_log, logging.WARNING, "the certificate for browsers has expired", **fields)
        return context


def open_web_certificates(config: ServerConfig, wall: Callable[[], datetime]) -> WebCertificates | None:
    """Return the certificates for browsers, or None for a listener without TLS. Raises ``BadCredentials``."""
    if not config.web.is_tls or not config.web.listen:
        return None
    return WebCertificates(config.web, config.tls, config.data_dir / AUTHORITY_FOLDER, wall)


class _UserRoots:
    """Roots and intermediates that verify the certificates of users."""

    def __init__(self, tls: Tls, authority: Path) -> None:
        self.files = [file for file in (tls.trust_file, tls.user_trust_file) if file is not None]
        self._authority = authority

    def add_to(self, context: ssl.SSLContext) -> None:
        """Request users' certificates with ``context``. Raises ``OSError`` or ``ValueError``."""
        for file in self.files:
            with path_for_openssl(file) as roots:
                context.load_verify_locations(roots)
        if intermediates := read_intermediates(self._authority):
            context.load_verify_locations(cadata=intermediates.decode())
        # Optional, so that a browser without a certificate receives a page with the cause.
        context.verify_mode = ssl.CERT_OPTIONAL


class _Files:
    """A certificate of the operator."""

    def __init__(self, pair: WebCertificate, users: _UserRoots | None) -> None:
        self._pair = pair
        self._users = users
        self._seen: _State | None = None

    def must_read(self, now: datetime) -> bool:
        users = self._users.files if self._users is not None else []
        before, self._seen = self._seen, _state_of([*self._pair_files, *users])
        return self._seen != before

    @property
    def _pair_files(self) -> tuple[Path, Path]:
        return self._pair.certificate_file, self._pair.key_file

    def read(self, now: datetime) -> tuple[NamedContext, Description]:
        file = self._pair.certificate_file
        key_pem, chain_pem, description = read_pair(file, self._pair.key_file)
        return _make_context(chain_pem, key_pem, description, self._users, str(file)), description


class _Own:
    """A certificate for the domain and its hosts, from the server's own authority."""

    def __init__(self, domain: str, authority: Path, users: _UserRoots | None) -> None:
        self._names = (domain, f"*.{domain}")
        self._authority = authority
        self._users = users
        self._seen: _State | None = None
        self._due: datetime | None = None

    def must_read(self, now: datetime) -> bool:
        before, self._seen = self._seen, _state_of(self._users.files if self._users is not None else [])
        is_due = self._due is not None and now >= self._due
        if is_due:
            self._due = now + _RETRY_AFTER  # unless the renewal succeeds
        return is_due or self._seen != before

    def read(self, now: datetime) -> tuple[NamedContext, Description]:
        try:
            authority = load_authority(self._authority)
            days = min(LEAF_DAYS, authority.days_left(now))
            leaf = authority.issue(Role.SERVER, "web", names=self._names, days=days, now=now)
        except (AuthorityError, OSError, ValueError) as error:
            why = f"the server's own authority in {self._authority} cannot issue a certificate: {error}"
            raise BadCredentials(f"{why}; name files in [[web.certificate]] instead") from None
        description = describe(leaf.credential.certificate_pem)
        self._due = now + (description.ends - now) * _RENEWED_AT
        context = _make_context(
            leaf.chain_pem, leaf.credential.key_pem, description, self._users, "the certificate"
        )
        return context, description


def _make_context(
    chain_pem: bytes, key_pem: bytes, description: Description, users: _UserRoots | None, place: str
) -> NamedContext:
    context = NamedContext(ssl.PROTOCOL_TLS_SERVER)
    context.names = tuple(name.lower() for name in description.names)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(list(_ALPN))
    refuse_resumption(context)
    try:
        with in_memory(chain_pem) as chain, in_memory(key_pem) as key:
            context.load_cert_chain(chain, key)
        if users is not None:
            users.add_to(context)
    except ssl.SSLError as error:
        is_other = error.reason == "KEY_VALUES_MISMATCH"
        why = "its key file has the key of another certificate" if is_other else f"TLS cannot use it: {error}"
        raise BadCredentials(f"{place}: {why}") from None
    except (OSError, ValueError) as error:
        raise BadCredentials(f"{place}: the roots of users cannot be used: {error}") from None
    return context


def _state_of(files: Sequence[Path]) -> _State:
    found = []
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            found.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)
