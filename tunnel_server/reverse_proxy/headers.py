"""HTTP heads on their way through the ``web`` entrance: what is taken out, what is added, what is refused.

Both directions are parsed once and written anew by h11: framing is never copied, so what we saw is
what the other side sees (request smuggling). No I/O.
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

# RFC 9110 section 7.6.1, with the older names that are still seen. Expect is answered here, by the
# one who reads the body.
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
# What services behind proxies believe about the user, in the spellings of the common proxies. `Proxy` becomes
# HTTP_PROXY in a CGI environment, which programs take for their own proxy (httpoxy, CVE-2016-5385).
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
# Names that have a meaning of their own in one spelling only.
_FRAMING = frozenset({b"content-length", b"content-type", b"host"})
_SEPARATOR = re.compile(rb"[^0-9a-z]")
_OF_A_PAGE = frozenset({b"origin", b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site"})
"""What a browser adds to the request of a page."""
_FRAMES = frozenset({b"embed", b"fencedframe", b"frame", b"iframe", b"object"})
"""Values of ``Sec-Fetch-Dest`` for a document inside another one."""
# Points browsers at a port of ours that is not the service's.
_ONLY_BACK = frozenset({b"alt-svc"})
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_COOKIE_DOMAIN = re.compile(rb";[ \t]*domain[ \t]*=[^;]*", re.IGNORECASE)
_WEBSOCKET = b"websocket"


def request_forward(request: h11.Request, source: str) -> h11.Request:
    """The request as the target gets it; ``source`` is the user's address.

    ``Host`` stays as the browser sent it: services compare it with ``Origin`` before they accept a
    WebSocket, and build redirects and cookies from it, which must lead back here and not to a name
    that only the edge knows.
    """
    upgrade = wants_websocket(request)
    headers = [(name, value) for name, value in _end_to_end(request) if not _is_forgeable(name.lower())]
    headers += _framing(request)
    # One stream carries one request, so the target need not keep its connection.
    headers.append((b"Connection", b"Upgrade" if upgrade else b"close"))
    if upgrade:
        headers.append((b"Upgrade", _WEBSOCKET))
    headers += _our_claims(request, source)
    return h11.Request(method=request.method, target=request.target, headers=headers)


def _is_forgeable(name: bytes) -> bool:
    """Whether a target may read this lower-case name as a claim about the user, or as framing.

    CGI and WSGI replace each ``-`` of a name by ``_``, and some servers every character that is no letter or
    digit. So ``X_Forwarded_For`` and ``X.Forwarded.For`` reach a program as ``X-Forwarded-For`` does.
    """
    meaning = _SEPARATOR.sub(b"-", name)
    if meaning in _CLAIMS or meaning.startswith(_CLAIM_PREFIXES):
        return True
    return meaning != name and (meaning in _HOP_BY_HOP or meaning in _FRAMING)


def _our_claims(request: h11.Request, source: str) -> RawHeaders:
    return [
        (b"X-Forwarded-For", source.encode("ascii")),
        (b"X-Forwarded-Host", host_of(request).encode("latin-1")),
        (b"X-Forwarded-Proto", b"http"),
    ]


def _framing(request: h11.Request) -> RawHeaders:
    """Chunked if it came chunked; a length is end-to-end and stands among the others."""
    chunked = header_values(request, b"transfer-encoding")
    return [(b"Transfer-Encoding", b"chunked")] if chunked else []


def response_back(response: h11.Response) -> h11.Response:
    """The answer as the browser gets it; h11 adds the framing that the browser's version needs."""
    headers = [(name, value) for name, value in _end_to_end(response) if name.lower() not in _ONLY_BACK]
    if header_values(response, b"transfer-encoding"):
        headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    headers = [*map(_own_cookie, headers), (b"Content-Security-Policy", _frame_policy(response))]
    return h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)


def _frame_policy(response: h11.Response) -> bytes:
    """A policy beside those of the target: browsers enforce each. Only pages of the same origin may frame.

    A browser that sees ``frame-ancestors`` ignores ``X-Frame-Options``, so its ``DENY`` is said again here.
    """
    is_denied = any(value.strip().lower() == b"deny" for value in header_values(response, b"x-frame-options"))
    return b"frame-ancestors 'none'" if is_denied else b"frame-ancestors 'self'"


def switch_back(response: h11.InformationalResponse) -> h11.InformationalResponse:
    """The 101 as the browser gets it. Raises ``Refused`` unless it accepts what was asked for."""
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
    """A cookie for a whole domain would reach other nodes too; without one it stays with its host."""
    name, value = header
    return (name, _COOKIE_DOMAIN.sub(b"", value)) if name.lower() == b"set-cookie" else header


def _end_to_end(message: h11.Request | h11.Response | h11.InformationalResponse) -> RawHeaders:
    """The headers without those of one hop, also those that ``Connection`` names, in their own spelling."""
    dropped = _HOP_BY_HOP | (_tokens(message, b"connection") - {b"host", b"content-length"})
    return [(name, value) for name, value in message.headers.raw_items() if name.lower() not in dropped]


def _tokens(message: h11.Request | h11.Response | h11.InformationalResponse, name: bytes) -> frozenset[bytes]:
    values = b",".join(header_values(message, name))
    return frozenset(token.strip().lower() for token in values.split(b",")) - {b""}


def wants_websocket(request: h11.Request) -> bool:
    """Whether the request asks for a WebSocket. Other upgrades are dropped, h2c above all: RFC 9110
    section 7.8 lets a server ignore any, and what is not HTTP/1.1 would pass unread."""
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
    """The ``Host`` header; empty if there is none, as HTTP/1.0 allows."""
    return b"".join(header_values(request, b"host")[:1]).decode("latin-1")


def check_web_request(request: h11.Request) -> None:
    """Raises ``Refused`` for what a browser never sends to an origin server."""
    if request.method in (b"CONNECT", b"TRACE"):
        raise Refused(Reason.METHOD_NOT_ALLOWED, f"{request.method.decode()} is not for the web entrance")
    if not request.target.startswith(b"/") and (request.method, request.target) != (b"OPTIONS", b"*"):
        raise Refused(Reason.BAD_REQUEST, "the request target is not a path; this is no forward proxy")
    if wants_websocket(request) and has_body(request):
        # The bytes behind the head would be both the body and the first frames (RFC 6455, section 4.1).
        raise Refused(
            Reason.BAD_REQUEST, "a request for a WebSocket has no body, so it must not announce one"
        )
    refuse_cross_site(request)


def refuse_cross_site(request: h11.Request) -> None:
    """Raise ``Refused`` if a page of another site caused this request.

    The user's browser would lend such a page what the user may do. An ``Origin`` with the name of another
    host refuses the request, whatever else the browser sends: it comes with every POST, script and WebSocket.
    Fetch Metadata (W3C) covers requests without an ``Origin`` and those with ``Origin: null``, but browsers
    send it only to https and to ``localhost``. A link may lead here. A script, a form or a frame of another
    site may not.
    """
    if _OF_A_PAGE.isdisjoint([name for name, _ in request.headers]):
        return
    site, mode = _last(request, b"sec-fetch-site"), _last(request, b"sec-fetch-mode")
    is_framed = _last(request, b"sec-fetch-dest") in _FRAMES
    followed_link = mode == b"navigate" and request.method in (b"GET", b"HEAD") and not is_framed
    foreign = site in (b"cross-site", b"same-site") and not followed_link
    origins = [value.decode("latin-1").lower() for value in header_values(request, b"origin")]
    if foreign or not all(_is_host(origin, host_of(request)) for origin in origins if origin != "null"):
        raise Refused(
            Reason.SOURCE_NOT_ALLOWED, "a page of another site asked for this; open it in its own tab instead"
        )
    # A form sends null if its page has "Referrer-Policy: no-referrer", and so does a sandboxed frame of
    # another site. No page can set Sec-Fetch-Site, which is cross-site for the frame.
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

    The scheme does not count, because a proxy in front may have ended TLS. Neither does its default port,
    which browsers leave out and such a proxy may add.
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
    """Whether the asker is likely a person in front of a browser."""
    return any(name == b"accept" and b"text/html" in value.lower() for name, value in headers)
