"""What the HTTPS listener answers to those without a certificate, or who want their next: EST, RFC 7030.

1. ``cacerts`` and ``csrattrs`` are for anybody, ``simpleenroll`` for a token, ``simplereenroll`` for the
   certificate that the handshake has proven. Headers say nothing about who somebody is.
2. Bodies are base64, with the transfer encoding named although RFC 8951 withdrew that: older clients ask
   for it, and newer ones ignore it.
3. EST has no place for where agents attach and what this server's clock says; ``/api/v1/join`` has both.
   It tells what the server's certificate tells, and so needs nobody's proof.
"""

from __future__ import annotations

import base64
import email.utils
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import h11
import trio

from certs.requests import MAX_REQUEST_BYTES
from tunnel_core.http import Headers, HttpConnection, header_values
from tunnel_core.reasons import Reason, Refused
from tunnel_core.tls import TlsStream
from tunnel_server.enrolment.asking import Login, parse_login
from tunnel_server.enrolment.enrolment import Asker, Enrolment
from tunnel_server.listeners import Accepted

ENTRANCE = "est"
ROOT = "/.well-known/est/"
JOIN = "/api/v1/join"
_BODY_SECONDS = 10.0
_METHODS = {"cacerts": b"GET", "csrattrs": b"GET", "simpleenroll": b"POST", "simplereenroll": b"POST"}
_CERTIFICATES = [
    ("content-type", "application/pkcs7-mime; smime-type=certs-only"),
    ("content-transfer-encoding", "base64"),
]
# CsrAttrs: the attribute ecPublicKey with prime256v1, and ecdsa-with-SHA256 (RFC 7030, section 4.5.2).
_WISH = base64.encodebytes(
    bytes.fromhex("3021301506072a8648ce3d0201310a06082a8648ce3d03010706082a8648ce3d040302")
)


@dataclass(frozen=True, slots=True)
class Reach:
    """Where the world finds this server, as ``host:port``: agents' listener, and this one."""

    trust_domain: str
    agents: tuple[str, ...]
    https: tuple[str, ...]


class EstEntrance:
    """Answers requests for certificates. ``wall`` gives UTC, ``reach`` is asked at each request."""

    def __init__(
        self, enrolment: Enrolment, reach: Callable[[], Reach], wall: Callable[[], datetime]
    ) -> None:
        self._enrolment = enrolment
        self._reach = reach
        self._wall = wall

    def answers(self, request: h11.Request) -> bool:
        """Whether this path is one of ours, which are open to those without a certificate."""
        path = _path(request)
        return path == JOIN or path.startswith(ROOT)

    async def handle(self, http: HttpConnection, request: h11.Request, accepted: Accepted) -> None:
        """Answers one request, or raises ``Refused``."""
        path = _path(request)
        if path == JOIN:
            _require_method(request, b"GET")
            await self._respond(http, [("content-type", "application/json")], self._join_page())
            return
        operation = path.removeprefix(ROOT)
        if operation not in _METHODS:
            raise Refused(
                Reason.NOT_FOUND, f"there is nothing at {path[:200]}; there is {', '.join(_METHODS)}"
            )
        _require_method(request, _METHODS[operation])
        match operation:
            case "cacerts":
                await self._respond(http, _CERTIFICATES, self._enrolment.signer.cacerts)
            case "csrattrs":
                headers = [("content-type", "application/csrattrs"), _CERTIFICATES[1]]
                await self._respond(http, headers, _WISH)
            case "simpleenroll":
                await self._enrol(http, request, accepted)
            case _:
                await self._renew(http, request, accepted)

    async def _enrol(self, http: HttpConnection, request: h11.Request, accepted: Accepted) -> None:
        login, body = _login(request), await _body(http, request)
        with accepted.ticket.at_work():
            signed = await self._enrolment.enrol(login, body, _asker(accepted))
        accepted.ticket.authenticated()
        await self._respond(http, _CERTIFICATES, signed.body)

    async def _renew(self, http: HttpConnection, request: h11.Request, accepted: Accepted) -> None:
        leaf = accepted.stream.peer_certificate() if isinstance(accepted.stream, TlsStream) else b""
        if not leaf:
            detail = "a certificate is renewed by showing it, and none was shown; a first one: simpleenroll"
            raise Refused(Reason.UNAUTHENTICATED, detail)
        body = await _body(http, request)
        with accepted.ticket.at_work():
            signed = await self._enrolment.renew(leaf, body, _asker(accepted))
        accepted.ticket.authenticated()
        await self._respond(http, _CERTIFICATES, signed.body)

    def _join_page(self) -> bytes:
        reach = self._reach()
        page = {
            "trust_domain": reach.trust_domain,
            "agents": list(reach.agents),
            "https": list(reach.https),
            "time": self._wall().isoformat(timespec="milliseconds"),
        }
        return json.dumps(page, separators=(",", ":")).encode() + b"\n"

    async def _respond(self, http: HttpConnection, headers: Headers, body: bytes) -> None:
        date = email.utils.format_datetime(self._wall(), usegmt=True)
        await http.respond(200, "OK", [*headers, ("date", date), ("cache-control", "no-store")], body)


def _path(request: h11.Request) -> str:
    return request.target.decode("ascii").partition("?")[0]


def _require_method(request: h11.Request, method: bytes) -> None:
    if request.method != method:
        raise Refused(Reason.METHOD_NOT_ALLOWED, f"use {method.decode()} here")


def _login(request: h11.Request) -> Login | None:
    found = header_values(request, b"authorization")
    if len(found) > 1:
        raise Refused(Reason.BAD_REQUEST, "the request has more than one Authorization header")
    return parse_login(found[0]) if found else None


def _asker(accepted: Accepted) -> Asker:
    host = accepted.address.rpartition(":")[0].strip("[]")
    return Asker(host, accepted.source)


async def _body(http: HttpConnection, request: h11.Request) -> bytes:
    """The certificate request. Raises ``Refused`` for what is too large, too slow or something else."""
    kind = b"".join(header_values(request, b"content-type")).partition(b";")[0].strip().lower()
    if kind != b"application/pkcs10":
        raise Refused(Reason.BAD_CSR, "the request must be of Content-Type application/pkcs10")
    collected = bytearray()
    with trio.move_on_after(_BODY_SECONDS):
        async for piece in http.receive_body():
            collected += piece
            if len(collected) > MAX_REQUEST_BYTES:
                limit = MAX_REQUEST_BYTES // 1024
                raise Refused(Reason.BAD_CSR, f"the certificate request is larger than {limit} KiB")
        return bytes(collected)
    raise Refused(Reason.HEAD_TIMEOUT, f"the request body did not arrive within {_BODY_SECONDS:g} seconds")
