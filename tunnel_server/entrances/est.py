"""Enrolment and renewal of certificates on the HTTPS listener: EST, RFC 7030.

1. ``cacerts`` and ``csrattrs`` need no authentication. ``simpleenroll`` needs a token, ``simplereenroll``
   the client certificate that the TLS handshake verified. No header identifies the client.
2. Bodies are base64 and name their transfer encoding. RFC 8951 withdrew that header, but older clients
   require it and newer ones ignore it.
3. ``/api/v1/join`` has the addresses for agents and the server's time, because EST has no field for them.
   It needs no authentication, because it discloses no more than the server's certificate does.
"""

from __future__ import annotations

import base64
import email.utils
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import h11

from certs.requests import MAX_REQUEST_BYTES
from tunnel_core.http.router import GET, POST, Route, RoutedRequest, Section
from tunnel_core.http.server import Headers, HttpConnection, header_values, json_body, read_body, respond_json
from tunnel_core.humanize import as_iso
from tunnel_core.reasons import Reason, Refused
from tunnel_core.sources import host_of
from tunnel_server.auth.callers import ANYBODY, CERTIFICATE, Caller, CertificateCaller
from tunnel_server.listeners.listener import AcceptedConnection
from tunnel_server.pki.enrolment.enrolment import Enrolment, Requester
from tunnel_server.pki.enrolment.request import Login, parse_login

ENTRANCE = "est"
ROOT = "/.well-known/est/"
JOIN = "/api/v1/join"
_BODY_SECONDS = 10.0
"""Time for the body of a certificate request, before the requester is authenticated."""
_CERTIFICATES = [
    ("content-type", "application/pkcs7-mime; smime-type=certs-only"),
    ("content-transfer-encoding", "base64"),
]
# CsrAttrs: the attribute ecPublicKey with prime256v1, and ecdsa-with-SHA256 (RFC 7030, section 4.5.2).
_CSR_ATTRIBUTES = base64.encodebytes(
    bytes.fromhex("3021301506072a8648ce3d0201310a06082a8648ce3d03010706082a8648ce3d040302")
)


@dataclass(frozen=True, slots=True)
class PublicAddresses:
    """Trust domain, and public addresses (``host:port``) of the agents' and of the HTTPS listener."""

    trust_domain: str
    agents: tuple[str, ...]
    https: tuple[str, ...]


class EstEntrance:
    """Answer requests for certificates.

    ``wall`` returns the time in UTC. ``public_addresses`` is called for each request of the join page.
    """

    def __init__(
        self,
        enrolment: Enrolment,
        public_addresses: Callable[[], PublicAddresses],
        wall: Callable[[], datetime],
    ) -> None:
        self._enrolment = enrolment
        self._public_addresses = public_addresses
        self._wall = wall

    def section(self) -> Section[Caller]:
        """Return the routes of EST and of the join page."""
        return Section(
            ENTRANCE,
            ROOT,
            ANYBODY,
            [
                Route(GET, JOIN, ANYBODY, self._join_page),
                Route(GET, f"{ROOT}cacerts", ANYBODY, self._cacerts),
                Route(GET, f"{ROOT}csrattrs", ANYBODY, self._csrattrs),
                Route(POST, f"{ROOT}simpleenroll", ANYBODY, self._enrol),
                Route(POST, f"{ROOT}simplereenroll", CERTIFICATE, self._renew),
            ],
        )

    async def _join_page(self, routed: RoutedRequest, _: AcceptedConnection) -> None:
        addresses, now = self._public_addresses(), self._wall()
        page = {
            "trust_domain": addresses.trust_domain,
            "agents": list(addresses.agents),
            "https": list(addresses.https),
            "time": as_iso(now, "milliseconds"),
        }
        await respond_json(routed.http, json_body(page), [self._date()])

    async def _cacerts(self, routed: RoutedRequest, _: AcceptedConnection) -> None:
        await self._respond(routed.http, _CERTIFICATES, self._enrolment.signer.cacerts)

    async def _csrattrs(self, routed: RoutedRequest, _: AcceptedConnection) -> None:
        headers = [("content-type", "application/csrattrs"), _CERTIFICATES[1]]
        await self._respond(routed.http, headers, _CSR_ATTRIBUTES)

    async def _enrol(self, routed: RoutedRequest, accepted: AcceptedConnection) -> None:
        login, body = _login(routed.request), await _certificate_request(routed)
        with accepted.ticket.at_work():
            signed = await self._enrolment.enrol(login, body, _requester(accepted))
        accepted.ticket.authenticated()
        await self._respond(routed.http, _CERTIFICATES, signed.body)

    async def _renew(self, routed: RoutedRequest, caller: CertificateCaller) -> None:
        accepted, body = caller.accepted, await _certificate_request(routed)
        with accepted.ticket.at_work():
            signed = await self._enrolment.renew(caller.leaf, body, _requester(accepted))
        accepted.ticket.authenticated()
        await self._respond(routed.http, _CERTIFICATES, signed.body)

    async def _respond(self, http: HttpConnection, headers: Headers, body: bytes) -> None:
        lines = [*headers, self._date(), ("cache-control", "no-store")]
        await http.respond(200, "OK", lines, body)

    def _date(self) -> tuple[str, str]:
        return "date", email.utils.format_datetime(self._wall(), usegmt=True)


def _login(request: h11.Request) -> Login | None:
    values = header_values(request, b"authorization")
    if len(values) > 1:
        raise Refused(Reason.BAD_REQUEST, "the request has more than one Authorization header")
    return parse_login(values[0]) if values else None


def _requester(accepted: AcceptedConnection) -> Requester:
    return Requester(host_of(accepted.address), accepted.source)


async def _certificate_request(routed: RoutedRequest) -> bytes:
    """Return the body. Raises ``Refused`` for a body that is too large, too slow or of another type."""
    content_type = b"".join(header_values(routed.request, b"content-type")).partition(b";")[0]
    if content_type.strip().lower() != b"application/pkcs10":
        raise Refused(Reason.BAD_CSR, "the request must be of Content-Type application/pkcs10")
    return await read_body(routed.http, MAX_REQUEST_BYTES, _BODY_SECONDS, too_large=Reason.BAD_CSR)
