"""HTTP heads of the ``web`` entrance: headers that are removed, added or refused. No I/O.

h11 parses and rewrites both directions. Framing is never copied, so both sides see the same messages. This
prevents request smuggling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias
from urllib.parse import urlsplit

import h11

from tunnel_core.http.head import header_values
from tunnel_core.reasons import Reason, Refused

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]

# RFC 9110 section 7.6.1, with older names that are still in use. This server answers Expect itself, when it
# reads the body.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Headers that services behind proxies trust as facts about the user, as the common proxies spell them.
# `Proxy` becomes HTTP_PROXY in a CGI environment, which programs use as their own proxy (httpoxy,
# CVE-2016-5385).
_CLAIMS = frozenset(
    {
        b"client-ip",
        b"forwarded",
        b"proxy",
        b"remote-addr",
        b"remote-email",
        b"remote-groups",
        b"remote-host",
        b"remote-name",
        b"remote-user",
        b"true-client-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-real-ip",
    }
)
_CLAIM_PREFIXES = (b"x-forwarded-", b"x-remote-", b"x-auth-request-", b"x-webauth-", b"qanat-")
# Headers that are forwarded in this spelling, and removed in any other.
_FRAMING = frozenset({b"content-length", b"content-type", b"host"})
_SEPARATOR = re.compile(rb"[^0-9a-z]")
_OF_A_PAGE = frozenset({b"origin", b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site"})
"""What a browser adds to the request of a page."""
_FRAMES = frozenset({b"embed", b"fencedframe", b"frame", b"iframe", b"object"})
"""Values of ``Sec-Fetch-Dest`` for a document inside another one."""
# Alt-Svc would point browsers at a port of this server that is not the service's.
_DROPPED_FROM_RESPONSE = frozenset({b"alt-svc"})
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_COOKIE_DOMAIN = re.compile(rb";[ \t]*domain[ \t]*=[^;]*", re.IGNORECASE)
_WEBSOCKET = b"websocket"


def request_forward(request: h11.Request, source: str) -> h11.Request:
    """Return the request for the target. ``source`` is the user's address.

    ``Host`` stays as the browser sent it. Services compare it with ``Origin`` before they accept a WebSocket,
    and build redirects and cookies from it. Those must lead back here, not to a name known only at the edge.
    """
    upgrade = wants_websocket(request)
    headers = [(name, value) for name, value in _end_to_end(request) if not _is_forgeable(name.lower())]
    headers += _framing(request)
    # One stream carries one request, so the target can close its connection afterwards.
    headers.append((b"Connection", b"Upgrade" if upgrade else b"close"))
    if upgrade:
        headers.append((b"Upgrade", _WEBSOCKET))
    headers += _our_claims(request, source)
    return h11.Request(method=request.method, target=request.target, headers=headers)


def _is_forgeable(name: bytes) -> bool:
    """Whether a target may read this lower-case name as a claim about the user, or as framing.

    CGI and WSGI replace each ``-`` of a name by ``_``. Some servers replace every character that is not a
    letter or digit. So a program reads ``X_Forwarded_For`` and ``X.Forwarded.For`` as ``X-Forwarded-For``.
    """
    normalised = _SEPARATOR.sub(b"-", name)
    if normalised in _CLAIMS or normalised.startswith(_CLAIM_PREFIXES):
        return True
    return normalised != name and (normalised in _HOP_BY_HOP or normalised in _FRAMING)


def _our_claims(request: h11.Request, source: str) -> RawHeaders:
    return [
        (b"X-Forwarded-For", source.encode("ascii")),
        (b"X-Forwarded-Host", host_of(request).encode("latin-1")),
        (b"X-Forwarded-Proto", b"http"),
    ]


def _framing(request: h11.Request) -> RawHeaders:
    """Return the header for a chunked body. ``Content-Length`` is end-to-end and needs no header here."""
    chunked = header_values(request, b"transfer-encoding")
    return [(b"Transfer-Encoding", b"chunked")] if chunked else []


def response_back(response: h11.Response) -> h11.Response:
    """Return the answer for the browser. h11 adds the framing that the browser's HTTP version needs."""
    headers = [
        (name, value) for name, value in _end_to_end(response) if name.lower() not in _DROPPED_FROM_RESPONSE
    ]
    if header_values(response, b"transfer-encoding"):
        headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    headers = [*map(_own_cookie, headers), (b"Content-Security-Policy", _frame_policy(response))]
    return h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)


def _frame_policy(response: h11.Response) -> bytes:
    """Return a policy that lets only pages of the same origin frame the answer.

    Browsers enforce this policy and each one of the target. A browser that sees ``frame-ancestors`` ignores
    ``X-Frame-Options``, so this policy repeats a ``DENY``.
    """
    is_denied = any(value.strip().lower() == b"deny" for value in header_values(response, b"x-frame-options"))
    return b"frame-ancestors 'none'" if is_denied else b"frame-ancestors 'self'"


def switch_back(response: h11.InformationalResponse) -> h11.InformationalResponse:
    """Return the 101 for the browser. Raises ``Refused`` unless it switches to WebSocket."""
    upgrades = [value.strip().lower() for value in header_values(response, b"upgrade")]
    if upgrades != [_WEBSOCKET] or b"upgrade" not in _tokens(response, b"connection"):
        raise Refused(
            Reason.TARGET_PROTOCOL, "the target switched to another protocol than the browser asked for"
        )
    headers = [*_end_to_end(response), (b"Connection", b"Upgrade"), (b"Upgrade", _WEBSOCKET)]
    return h11.InformationalResponse(
        status_code=101, headers=[*map(_own_cookie, headers)], reason=response.reason
    )


def _own_cookie(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Remove ``Domain`` from a cookie, so that the browser does not send the cookie to other nodes."""
    name, value = header
    return (name, _COOKIE_DOMAIN.sub(b"", value)) if name.lower() == b"set-cookie" else header


def _end_to_end(message: h11.Request | h11.Response | h11.InformationalResponse) -> RawHeaders:
    """Return the headers, spelled as received, without hop-by-hop headers and those in ``Connection``."""
    dropped = _HOP_BY_HOP | (_tokens(message, b"connection") - {b"host", b"content-length"})
    return [(name, value) for name, value in message.headers.raw_items() if name.lower() not in dropped]


def _tokens(message: h11.Request | h11.Response | h11.InformationalResponse, name: bytes) -> frozenset[bytes]:
    values = b",".join(header_values(message, name))
    return frozenset(token.strip().lower() for token in values.split(b",")) - {b""}


def wants_websocket(request: h11.Request) -> bool:
    """Whether the request asks for a WebSocket.

    Other upgrades are removed, because bytes that are not HTTP/1.1 (for example h2c) would pass unchecked.
    RFC 9110 section 7.8 lets a server ignore any upgrade.
    """
    return (
        request.method == b"GET"
        and request.http_version == b"1.1"
        and _WEBSOCKET in _tokens(request, b"upgrade")
        and b"upgrade" in _tokens(request, b"connection")
    )


def has_body(request: h11.Request) -> bool:
    """Whether the head announces a body."""
    lengths = header_values(request, b"content-length")
    return bool(header_values(request, b"transfer-encoding")) or any(value.strip(b"0") for value in lengths)


def host_of(request: h11.Request) -> str:
    """Return the ``Host`` header, or an empty text if there is none, as HTTP/1.0 allows."""
    return b"".join(header_values(request, b"host")[:1]).decode("latin-1")


def check_web_request(request: h11.Request) -> None:
    """Raise ``Refused`` for a request that no browser sends to an origin server, or from another site."""
    if request.method in (b"CONNECT", b"TRACE"):
        raise Refused(Reason.METHOD_NOT_ALLOWED, f"{request.method.decode()} is not for the web entrance")
    if not request.target.startswith(b"/") and (request.method, request.target) != (b"OPTIONS", b"*"):
        raise Refused(Reason.BAD_REQUEST, "the request target is not a path; this is no forward proxy")
    if wants_websocket(request) and has_body(request):
        # The bytes after the head would be both the body and the first frames (RFC 6455, section 4.1).
        raise Refused(
            Reason.BAD_REQUEST, "a request for a WebSocket has no body, so it must not announce one"
        )
    refuse_cross_site(request)


def refuse_cross_site(request: h11.Request) -> None:
    """Raise ``Refused`` if a page of another site caused this request.

    Such a page would act with the user's rights. A link from another site may lead here. A script, a form or
    a frame of another site may not.

    Browsers send ``Origin`` with every POST, script and WebSocket, so an ``Origin`` with another host always
    refuses the request. Fetch Metadata (W3C) covers requests without an ``Origin`` or with ``Origin: null``,
    but browsers send it only to https and to ``localhost``.
    """
    if _OF_A_PAGE.isdisjoint([name for name, _ in request.headers]):
        return
    site, mode = _last(request, b"sec-fetch-site"), _last(request, b"sec-fetch-mode")
    is_framed = _last(request, b"sec-fetch-dest") in _FRAMES
    followed_link = mode == b"navigate" and request.method in (b"GET", b"HEAD") and not is_framed
    is_foreign = site in (b"cross-site", b"same-site") and not followed_link
    origins = [value.decode("latin-1").lower() for value in header_values(request, b"origin")]
    if is_foreign or not all(_is_host(origin, host_of(request)) for origin in origins if origin != "null"):
        raise Refused(
            Reason.SOURCE_NOT_ALLOWED, "a page of another site asked for this; open it in its own tab instead"
        )
    # Origin is null for a form whose page has "Referrer-Policy: no-referrer", and for a sandboxed frame of
    # another site. Sec-Fetch-Site separates the two, because no page can set it and the frame is cross-site.
    if "null" in origins and site != b"same-origin":
        raise Refused(
            Reason.SOURCE_NOT_ALLOWED,
            "the browser hides which page asked for this (Origin: null), so it may be a page of another site;"
            " open it in its own tab, by https or at localhost",
        )


def _last(request: h11.Request, name: bytes) -> bytes:
    return b"".join(header_values(request, name)[-1:]).strip().lower()


def _is_host(origin: str, host: str) -> bool:
    """Whether ``origin``, in lower case, names ``host``, the ``Host`` of the request.

    The scheme does not count, because a proxy in front of this server may terminate TLS. The scheme's default
    port does not count either, because browsers omit the port and such a proxy may add it.
    """
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    port = _DEFAULT_PORTS.get(parts.scheme)
    if port is None:
        return False
    name = parts.netloc.removesuffix(port)
    return name != "" and name == host.lower().removesuffix(port)


def wants_html(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the client is probably a browser, because it accepts HTML."""
    return any(name == b"accept" and b"text/html" in value.lower() for name, value in headers)
