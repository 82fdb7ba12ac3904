"""Logins of the web entrance: their protocol, the user ``loopback``, and users' certificates."""

from __future__ import annotations

import copy
import ipaddress
from dataclasses import dataclass
from typing import Protocol

from tunnel_core.identity import Role
from tunnel_core.reasons import Reason, Refused
from tunnel_core.sources import host_of
from tunnel_server.access.routing import WebHost
from tunnel_server.auth.credential_watch import CredentialWatch
from tunnel_server.auth.users import LOOPBACK_USER, User
from tunnel_server.reverse_proxy.messages import AnswerHead, BrowserRequest


@dataclass(frozen=True, slots=True)
class BrowserConnection:
    """A browser's connection, as far as a login needs it."""

    address: str
    """``host:port`` of the TCP peer, which may be a reverse proxy."""
    is_tls: bool
    """Whether the connection to this server is encrypted."""
    user: User | Refused | None
    """The user whose certificate the TLS handshake verified, or why that certificate is refused. None: the
    client has shown no certificate."""

    @property
    def host(self) -> str:
        """The address of the TCP peer without its port."""
        return host_of(self.address)


@dataclass(frozen=True, slots=True)
class LoginAnswer:
    """An answer of the login itself, such as a redirect to the host of the login."""

    head: AnswerHead
    body: bytes = b""


class Login(Protocol):
    """Decide the user of each request. There is no default: a request without a user is refused."""

    async def user_of(
        self, request: BrowserRequest, host: WebHost, connection: BrowserConnection
    ) -> User | LoginAnswer:
        """Return the user, or the answer for a browser without a user. Raises ``Refused``.

        ``host`` is the virtual host of the request. The request's scheme, authority and source may be
        those that a trusted proxy named.
        """


_OF_PROXIES = (b"x-forwarded-for", b"forwarded", b"via")
"""Headers that a proxy adds. A request with one of them may come from another machine."""


class LoopbackLogin:
    """Each program on this machine is the user ``loopback``.

    A proxy on this machine would make the whole internet that user. So a request that a proxy passed on
    counts by its source, and is refused if no trusted proxy named the source.
    """

    def __init__(self, trust_domain: str) -> None:
        self._user = User(LOOPBACK_USER, Role.USER, trust_domain)

    async def user_of(
        self, request: BrowserRequest, host: WebHost, connection: BrowserConnection
    ) -> User | LoginAnswer:
        """Return ``loopback``. Raises ``Refused`` for another machine, and for an unknown source."""
        sources = (connection.host, request.source)
        named = b"".join(request.values(b"x-forwarded-for")).strip(b", \t") if request.is_proxied else b""
        if not all(ipaddress.ip_address(source).is_loopback for source in sources):
            raise Refused(
                Reason.SOURCE_NOT_ALLOWED,
                "without a login the web entrance serves this machine only; the server's configuration needs "
                '[web] login = "certificate", or login = "proxy" behind a proxy that authenticates people',
            )
        if not named and any(request.values(name) for name in _OF_PROXIES):
            raise Refused(
                Reason.SOURCE_NOT_ALLOWED,
                "a proxy passed this request on, and the web entrance serves this machine only; if the proxy "
                "authenticates people, the server's configuration needs the proxy's address in [web] "
                'trusted_proxies, and login = "proxy"',
            )
        return self._user


class ProxyLogin:
    """A trusted proxy authenticates people, so each request that it passes on is the user ``loopback``'s.

    All other requests are as under ``LoopbackLogin``.
    """

    def __init__(self, trust_domain: str) -> None:
        self._user = User(LOOPBACK_USER, Role.USER, trust_domain)
        self._local = LoopbackLogin(trust_domain)

    async def user_of(
        self, request: BrowserRequest, host: WebHost, connection: BrowserConnection
    ) -> User | LoginAnswer:
        """Return ``loopback``. Raises ``Refused`` for other machines that no trusted proxy stands for."""
        if request.is_proxied:
            return self._user
        return await self._local.user_of(request, host, connection)


class CertificateLogin:
    """The user is the one whose certificate the browser showed in the TLS handshake."""

    def __init__(self, credential_watch: CredentialWatch) -> None:
        self._credential_watch = credential_watch

    async def user_of(
        self, request: BrowserRequest, host: WebHost, connection: BrowserConnection
    ) -> User | LoginAnswer:
        """Return the user. Raises ``Refused`` without a certificate that is still accepted."""
        user = connection.user
        if user is None:
            raise Refused(
                Reason.UNAUTHENTICATED,
                "no user's certificate was shown; `qanat-server issue user NAME` makes one, and docs/web.md "
                "has the steps that import it into a browser",
            )
        if isinstance(user, Refused):
            raise copy.copy(user)  # a traceback on the kept refusal would be a reference cycle
        self._credential_watch.require(user.certificate)
        return user
