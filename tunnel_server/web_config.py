"""The section ``[web]`` of ``server.toml``: where browsers connect. No I/O."""

# ruff: noqa: RUF009 - calls in defaults return immutable values

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path

import attrs

from tunnel_core.config.types import Count, DnsName, InvalidValueError, ListenAddress, Network, ServiceName

_LEAST_HEAD_BYTES, _MOST_HEAD_BYTES = 4 * 1024, 1024 * 1024


class WebLogin(enum.Enum):
    """Proof that a browser's user has to give."""

    NONE = "none"
    """None. Each program on this machine is the user ``loopback``."""
    CERTIFICATE = "certificate"
    """A user's certificate, shown in the TLS handshake."""
    PROXY = "proxy"
    """None here, because a trusted proxy authenticates people. All whom it admits are ``loopback``."""


class HostMode(enum.StrEnum):
    """What a service of the web entrance reads in ``Host``: its own address, or the virtual host."""

    REWRITE = "rewrite"
    KEEP = "keep"


@attrs.frozen(kw_only=True)
class WebService:
    """How the web entrance speaks to services of one name, on all nodes."""

    name: ServiceName
    host: HostMode = HostMode.REWRITE
    forwarded: bool = False


@attrs.frozen(kw_only=True)
class WebCertificate:
    """A certificate chain and its key, in PEM, for the host names in the certificate."""

    certificate_file: Path
    key_file: Path


@attrs.frozen(kw_only=True)
class Web:
    """Listener for browsers. It speaks TLS if it has a certificate."""

    listen: tuple[ListenAddress, ...] = (ListenAddress("127.0.0.1", 7003),)
    domain: DnsName = DnsName("localhost")
    login: WebLogin = WebLogin.NONE
    own_certificate: bool = False
    """Whether the server's own authority issues a certificate for ``domain`` and the hosts below it."""
    certificate: tuple[WebCertificate, ...] = ()
    service: tuple[WebService, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    """Addresses of reverse proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed."""
    head_bytes: Count = Count(64 * 1024)
    """Size of the head of a request. Single sign-on and long filters make 30 KB of cookies, or of a URL."""

    def __attrs_post_init__(self) -> None:
        self._check_listen()
        self._check_services()
        if self.login is WebLogin.CERTIFICATE and not self.is_tls:
            why = '"certificate" needs TLS, in which browsers show their certificate'
            raise InvalidValueError(why, "add [[web.certificate]], or write own_certificate = true", "login")
        if self.login is WebLogin.PROXY and not self.trusted_proxies:
            fix = 'write the proxy\'s address, as in trusted_proxies = ["127.0.0.1/32"]'
            raise InvalidValueError('"proxy" needs a proxy that authenticates people', fix, "login")
        if self.own_certificate and "." not in self.domain:
            why = f"clients refuse a certificate for *.{self.domain}, because the domain has no dot"
            raise InvalidValueError(why, f'write domain = "qanat.{self.domain}"', "own_certificate")
        if not _LEAST_HEAD_BYTES <= self.head_bytes <= _MOST_HEAD_BYTES:
            why = f"{self.head_bytes} bytes is out of range"
            raise InvalidValueError(why, f"write {_LEAST_HEAD_BYTES} to {_MOST_HEAD_BYTES}", "head_bytes")

    def _check_listen(self) -> None:
        for address in self.listen:
            if address.is_loopback:
                continue
            if self.login is not WebLogin.CERTIFICATE:
                why = f'{address} is reachable from other machines, and login is "{self.login.value}"'
                login = 'login = "certificate" with [[web.certificate]]'
                fix = f'listen on loopback: "127.0.0.1:7003", or write {login}'
                raise InvalidValueError(why, fix, "listen")

    def _check_services(self) -> None:
        names = [str(service.name) for service in self.service]
        for name in names:
            if names.count(name) > 1:
                fix = "keep one of them"
                raise InvalidValueError(f"[[web.service]] has two entries for {name}", fix, "service")

    @property
    def is_tls(self) -> bool:
        """Whether the listener speaks TLS."""
        return self.own_certificate or bool(self.certificate)

    @property
    def files(self) -> Iterator[Path]:
        """Yield the files that the server reads while it runs."""
        for pair in self.certificate:
            yield pair.certificate_file
            yield pair.key_file
