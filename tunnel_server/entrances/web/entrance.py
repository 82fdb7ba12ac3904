"""Virtual hosts of services: ``service--alias.domain`` leads to a node's service, the domain to the index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import h11

from tunnel_core.config.types import ServiceName
from tunnel_core.http.server import HeadLimits, HttpConnection, serve_http
from tunnel_core.identity import Role
from tunnel_core.names import Target
from tunnel_core.reasons import Reason, Refused
from tunnel_core.wire.frames import Service
from tunnel_server.access.opener import NotOpened, Opener, StreamRequest
from tunnel_server.access.routing import NodeRoute, WebHost, route_web_host
from tunnel_server.auth.users import User
from tunnel_server.config import HostMode, WebService
from tunnel_server.entrances.web.pages import error_page, index_page, send_page
from tunnel_server.listeners.addresses import CannotListen, is_loopback_listen
from tunnel_server.listeners.listener import AcceptedConnection
from tunnel_server.nodes.registry import Node, unknown_node
from tunnel_server.reverse_proxy.exchange import Exchange
from tunnel_server.reverse_proxy.headers import check_web_request, wants_html
from tunnel_server.reverse_proxy.hosts import Hosts, Origin, origin_of
from tunnel_server.reverse_proxy.http1 import Http1Browser, browser_request
from tunnel_server.reverse_proxy.messages import Browser, BrowserRequest
from tunnel_server.reverse_proxy.pool import TargetPool

ENTRANCE = "web"


class WebEntrance:
    """Serve browsers. ``domain`` is the parent of all virtual hosts; ``localhost`` always works too."""

    def __init__(
        self, opener: Opener, domain: str, limits: HeadLimits, services: Iterable[WebService] = ()
    ) -> None:
        self._services = {str(service.name): service for service in services}
        self._opener = opener
        self._domain = domain
        self._limits = limits
        self.pool = TargetPool(opener)
        """Connections to targets. The pool keeps them while its ``run`` runs."""

    async def serve(self, accepted: AcceptedConnection) -> None:
        """Serve one browser's connection to its end."""
        accepted.ticket.authenticated()  # On loopback every client is on this machine.

        def record(refused: Refused) -> None:
            if not isinstance(refused, NotOpened):
                refused.who = {"user": self._user().name}
                self._opener.records.refused(ENTRANCE, accepted.source, refused)

        async def handle(http: HttpConnection, request: h11.Request) -> None:
            try:
                asked = browser_request(request, _host_part(accepted.address))
                await self._answer(http, Http1Browser(http, asked), accepted.address)
            except Refused as refused:
                if http.has_answered or not wants_html(request.headers):
                    raise
                record(refused)
                await send_page(http, refused.reason.status, error_page(refused), refused)

        await serve_http(accepted.stream, handle, self._limits, on_refused=record)

    async def _answer(self, http: HttpConnection, browser: Browser, address: str) -> None:
        check_web_request(browser.request)
        web_host = route_web_host(browser.request.host, self._domain)
        if not web_host.alias:
            await self._send_index(http, browser.request)
            return
        wanted = StreamRequest(self._user(), self._route(web_host), ENTRANCE, address, target_tls=True)
        target_name = f"{web_host.service} on {wanted.route.node}"
        settings = self._services.get(web_host.service, WebService(name=ServiceName(web_host.service)))
        announced = announced_service(self._opener.nodes.find_exact(wanted.route.node), web_host.service)
        keeps = settings.host is HostMode.KEEP or announced is None
        target = None if keeps or announced is None else origin_of(announced)
        hosts = Hosts(Origin(browser.request.scheme, browser.request.authority), target)
        exchange = Exchange(browser, target_name, self.pool, hosts, claims=settings.forwarded)
        await exchange.run(wanted)

    def _user(self) -> User:
        return User("loopback", Role.USER, self._opener.trust_domain)

    def _route(self, web_host: WebHost) -> NodeRoute:
        nodes = self._opener.nodes
        node = nodes.find_alias(web_host.alias)
        if node is None:
            raise Refused(Reason.UNKNOWN_NODE, unknown_node(web_host.alias, nodes.nearest(web_host.alias)))
        _refuse_unbrowsable(node, web_host.service)
        return NodeRoute(node.name, Target(service=web_host.service))

    async def _send_index(self, http: HttpConnection, request: BrowserRequest) -> None:
        if request.target.partition(b"?")[0] != b"/":
            raise Refused(Reason.NOT_FOUND, "there is nothing at this path; / lists the nodes")
        page = index_page(self._opener.nodes, request.host, self._domain)
        await send_page(http, 200, page)


def _host_part(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


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


def refuse_open_web(listen: Sequence[str]) -> None:
    """Raise ``CannotListen`` for an address beyond loopback."""
    for address in listen:
        if not is_loopback_listen(address):
            raise CannotListen(
                f"cannot listen on {address}: the web entrance has no login yet, so it serves this machine "
                "only; listen on 127.0.0.1 or [::1] and reach it through ssh -L or a proxy with a login"
            )
