"""Virtual hosts of services: ``service--alias.domain`` leads to a node's service, the domain to the index."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import h11

from tunnel_core.config.types import ServiceName
from tunnel_core.http.server import HeadLimits, HttpConnection, serve_http
from tunnel_core.kept_errors import without_frames
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.streams.tls import SocketTlsStream, TlsStream
from tunnel_core.wire.frames import Service
from tunnel_server.access.opener import NotOpened, Opener, StreamRequest
from tunnel_server.access.routing import NodeRoute, WebHost, canonical_authority, route_web_host
from tunnel_server.auth.identify import identify_by_certificate
from tunnel_server.auth.users import User
from tunnel_server.entrances.web.error_pages import Failure, answer_to, redacted, wants_document
from tunnel_server.entrances.web.http2_browser import Http2Browser
from tunnel_server.entrances.web.login import BrowserConnection, Login, LoginAnswer
from tunnel_server.entrances.web.pages import PAGE_HEADERS, index_page
from tunnel_server.entrances.web.proxies import TrustedProxies
from tunnel_server.listeners.listener import AcceptedConnection
from tunnel_server.listeners.named_contexts import NamedContexts
from tunnel_server.listeners.tls import ServedTlsStream
from tunnel_server.listeners.user_connections import UserConnections
from tunnel_server.nodes.registry import Node, unknown_node
from tunnel_server.reverse_proxy.exchange import Exchange
from tunnel_server.reverse_proxy.headers import check_web_request
from tunnel_server.reverse_proxy.hosts import Hosts, Origin, origin_of
from tunnel_server.reverse_proxy.http1 import Http1Browser, browser_request
from tunnel_server.reverse_proxy.messages import AnswerEnd, AnswerHead, Browser, BrowserRequest
from tunnel_server.reverse_proxy.pool import TargetPool
from tunnel_server.web_config import HostMode, WebService

if TYPE_CHECKING:
    from tunnel_server.entrances.web.http2_connection import Http2Connection

ENTRANCE = "web"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebTls:
    """TLS of the entrance: its certificates, and the limit of the connections of each user."""

    contexts: NamedContexts
    users: UserConnections


class _Browser(Browser, Protocol):
    """A browser whose request this entrance may correct."""

    request: BrowserRequest


class WebEntrance:
    """Serve browsers. ``domain`` is the parent of all virtual hosts; ``localhost`` always works too.

    ``login`` decides who the user of each request is. ``proxies`` are believed about the browser that they
    serve. ``tls`` is None for a listener without TLS.
    """

    def __init__(
        self,
        opener: Opener,
        domain: str,
        limits: HeadLimits,
        services: Iterable[WebService] = (),
        *,
        login: Login,
        proxies: TrustedProxies | None = None,
        tls: WebTls | None = None,
    ) -> None:
        self.opener = opener
        self.domain = domain
        self.login = login
        self.proxies = proxies or TrustedProxies(())
        self.tls = tls
        self.services = {str(service.name): service for service in services}
        self.pool = TargetPool(opener)
        """Connections to targets. The pool keeps them while its ``run`` runs."""
        self._limits = limits
        self._http2: type[Http2Connection] | None = None
        if tls is not None:  # other servers spare the 1.2 MiB of h2
            from tunnel_server.entrances.web.http2_connection import Http2Connection

            self._http2 = Http2Connection

    async def serve(self, accepted: AcceptedConnection) -> None:
        """Serve one browser's connection to its end."""
        with self._connection(accepted) as connection:
            requests = _Requests(self, accepted, connection)
            stream = accepted.stream
            if isinstance(stream, SocketTlsStream) and stream.alpn() == "h2":
                await self._serve_http2(stream, requests, connection.host)
            else:
                await serve_http(stream, requests.handle, self._limits, on_refused=requests.record)

    async def _serve_http2(self, stream: SocketTlsStream, requests: _Requests, source: str) -> None:
        assert self._http2 is not None
        http2 = self._http2(stream, self._limits, source, requests.answer, requests.record)
        try:
            await http2.serve()
        except Refused as refused:
            requests.record(refused)

    @contextlib.contextmanager
    def _connection(self, accepted: AcceptedConnection) -> Iterator[BrowserConnection]:
        """Yield the facts of a connection, and count the connection of a user while the block runs."""
        user, is_tls = self._certified_user(accepted), isinstance(accepted.stream, TlsStream)
        try:
            yield BrowserConnection(accepted.address, is_tls, user)
        finally:
            if self.tls is not None and isinstance(user, User):
                self.tls.users.remove(user.name)

    def _certified_user(self, accepted: AcceptedConnection) -> User | Refused | None:
        """Return the user of the client's certificate, or why it has none; None without a certificate."""
        stream = accepted.stream
        if self.tls is None or not isinstance(stream, TlsStream) or not stream.peer_certificate():
            return None
        try:
            user = identify_by_certificate(self.opener.trust_domain)(accepted)
            self.tls.users.add(user.name)
        except Refused as refused:
            return without_frames(refused)
        return user


class _Requests:
    """The requests of one connection."""

    def __init__(
        self, entrance: WebEntrance, accepted: AcceptedConnection, connection: BrowserConnection
    ) -> None:
        self.entrance = entrance
        self.accepted = accepted
        self.connection = connection

    async def handle(self, http: HttpConnection, request: h11.Request) -> None:
        """Answer a request of HTTP/1.1. Raises ``Refused`` for an answer that ends the connection."""
        scheme = b"https" if self.connection.is_tls else b"http"
        browser = Http1Browser(http, browser_request(request, self.connection.host, scheme))
        asked = _Request(self, browser)
        try:
            await asked.answer()
        except Refused as refused:
            if browser.has_answered or not wants_document(browser.request):
                refused.detail = redacted(refused.detail)
                refused.who = {"user": asked.user.name} if asked.user is not None else {}
                raise
            asked.record(refused)
            await asked.send_failure(refused)

    async def answer(self, browser: Http2Browser) -> None:
        """Answer a request of HTTP/2. A refusal behind the head of an answer resets the stream."""
        asked = _Request(self, browser)
        try:
            await asked.answer()
        except Refused as refused:
            asked.record(refused)
            if browser.has_answered:
                browser.abort(refused.reason)
            else:
                await asked.send_failure(refused)

    def record(self, refused: Refused) -> None:
        """Record a refusal that no user's request caused, or that ``_Request`` has passed on."""
        if not isinstance(refused, NotOpened):
            self.entrance.opener.records.refused(ENTRANCE, self.accepted.source, refused)


class _Request:
    """One request: its user, its virtual host, its node, and its answer."""

    def __init__(self, requests: _Requests, browser: _Browser) -> None:
        self.user: User | None = None
        self._entrance = requests.entrance
        self._requests = requests
        self._browser = browser
        self._host: WebHost | None = None
        self._node: Node | None = None

    async def answer(self) -> None:
        """Answer the request. Raises ``Refused``."""
        request, connection = self._apply_proxy(), self._requests.connection
        check_web_request(request)
        self._host = route_web_host(request.host, self._entrance.domain)
        user = await self._entrance.login.user_of(request, self._host, connection)
        if isinstance(user, LoginAnswer):
            await self._browser.send(user.head, *([user.body] if user.body else []), AnswerEnd())
            return
        self._requests.accepted.ticket.authenticated()
        self.user = user
        if not self._host.alias:
            await self._send_index(request, user)
            return
        route, address = self._route(self._host, user), self._requests.accepted.address
        wanted = StreamRequest(user, route, ENTRANCE, address, target_tls=True)
        await self._exchange(request, self._host.service, wanted)

    async def _exchange(self, request: BrowserRequest, service: str, wanted: StreamRequest) -> None:
        settings = self._entrance.services.get(service, WebService(name=ServiceName(service)))
        announced = announced_service(self._node, service)
        keeps = settings.host is HostMode.KEEP or announced is None
        target = None if keeps or announced is None else origin_of(announced)
        hosts = Hosts(Origin(request.scheme, request.authority), target)
        target_name, pool = f"{service} on {wanted.route.node}", self._entrance.pool
        await Exchange(self._browser, target_name, pool, hosts, claims=settings.forwarded).run(wanted)

    def _apply_proxy(self) -> BrowserRequest:
        """Check the host against the certificate of the connection, and believe a trusted proxy.

        A proxy may choose any certificate of this server. A browser may not: it would present the session of
        one host to another one.
        """
        asked, peer, tls = self._browser.request, self._requests.connection.host, self._entrance.tls
        stream = self._requests.accepted.stream
        request = self._entrance.proxies.apply(asked, peer)
        if tls is not None and isinstance(stream, ServedTlsStream) and request is asked:
            host = canonical_authority(asked.host).partition(":")[0]
            if tls.contexts.is_misdirected(stream.context, host):
                detail = f"this connection has the certificate of other hosts than {host}"
                raise Refused(Reason.MISDIRECTED, detail)
        request = replace(request, authority=canonical_authority(request.host).encode())
        self._browser.request = request
        return request

    def _route(self, host: WebHost, user: User) -> NodeRoute:
        """Return the route to the service.

        A refusal tells any user whether the node exists. Only a grant tells more.
        """
        opener = self._entrance.opener
        node, target = opener.nodes.find_alias(host.alias), Target(service=host.service)
        if node is None:
            near = opener.directory_of(user).nearest(host.alias)
            raise Refused(Reason.UNKNOWN_NODE, unknown_node(host.alias, near))
        opener.access.authorise(user, ENTRANCE, node.name, target)
        self._node = node
        _refuse_unbrowsable(node, host.service)
        return NodeRoute(node.name, target)

    async def _send_index(self, request: BrowserRequest, user: User) -> None:
        if request.target.partition(b"?")[0] != b"/":
            raise Refused(Reason.NOT_FOUND, "there is nothing at this path; / lists the nodes")
        opener, domain = self._entrance.opener, self._entrance.domain
        may = partial(opener.access.may, user)
        page = await index_page(opener.nodes, may, request.host, domain, request.scheme.decode())
        body = page.encode()
        headers = [*PAGE_HEADERS, (b"content-length", str(len(body)).encode())]
        await self._browser.send(AnswerHead(200, headers, b"OK"), body, AnswerEnd())

    def record(self, refused: Refused) -> None:
        """Record the refusal, unless the opener has recorded it."""
        refused.who = {"user": self.user.name} if self.user is not None else {}
        self._requests.record(refused)

    async def send_failure(self, refused: Refused) -> None:
        """Send the page, or what else the request accepts."""
        head, body = answer_to(Failure(refused, self._host, self._node), self._browser.request)
        await self._browser.send(head, body, AnswerEnd())


def _refuse_unbrowsable(node: Node, service: str) -> None:
    """Raise ``Refused`` for a service that the agent announced as plain TCP.

    A service that the agent did not announce passes, because the agent's own refusal names the cure.
    """
    announced = announced_service(node, service)
    if announced is not None and announced.protocol == "tcp":
        raise Refused(
            Reason.UNKNOWN_SERVICE,
            f"service {service} of node {node.name} is plain TCP, which a browser cannot show; "
            f"use `qanat forward {node.name} {service}`",
        )


def announced_service(node: Node | None, name: str) -> Service | None:
    """Return the service as the agent announced it; None if it did not."""
    services = node.session.services if node is not None and node.session is not None else ()
    return next((service for service in services if service.name == name), None)
