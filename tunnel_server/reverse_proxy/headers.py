"""HTTP heads of the ``web`` entrance: headers that are removed, added or refused. No I/O.

Both directions are parsed and written anew. Framing is never copied, so both sides see the same messages.
This prevents request smuggling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from tunnel_core.reasons import Reason, Refused
from tunnel_server.reverse_proxy.hosts import Hosts
from tunnel_server.reverse_proxy.messages import AnswerHead, BrowserRequest, Headers, header_values, listed
from tunnel_server.reverse_proxy.requests import TargetRequest

# RFC 9110 section 7.6.1, with older names that are still in use.
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
_TUNNELLED_HTTP = (b"h2c", b"http/", b"tls/")
"""Beginnings of protocols that are HTTP again. Their requests would pass this server unread."""
_NOT_IN_TRAILERS = frozenset(
    {
        *(b"authorization", b"cache-control", b"content-encoding", b"content-length", b"content-range"),
        *(b"content-security-policy", b"content-type", b"cookie", b"host", b"location", b"max-forwards"),
        *(b"origin", b"range", b"referer", b"set-cookie", b"trailer", b"www-authenticate"),
    }
)
"""RFC 9110 section 6.5.1: a trailer must not change how the message is framed, routed or authorised."""
_COOKIE_DOMAIN = re.compile(rb";[ \t]*domain[ \t]*=[^;]*", re.IGNORECASE)
_WEBSOCKET = b"websocket"
_OF_A_CONNECTION = (b"ntlm", b"negotiate")
"""Schemes that log in a connection, not a request (RFC 4559)."""


def request_forward(request: BrowserRequest, hosts: Hosts, *, persists: bool, claims: bool) -> TargetRequest:
    """Return the request for the target.

    With ``persists`` another request may follow on the connection. With ``claims`` the target reads the
    user's address and the virtual host in ``X-Forwarded-*``. Home Assistant refuses such a request.
    """
    kept = [(name, value) for name, value in _end_to_end(request.headers) if _may_forward(name.lower())]
    headers: Headers = [*([(b"Host", hosts.host)] if hosts.host else []), *hosts.forward(kept)]
    upgrade, is_chunked = upgrade_of(request), request.body_length is None
    options = [b"Upgrade"] if upgrade else [] if persists else [b"close"]
    if is_chunked:
        headers.append((b"Transfer-Encoding", b"chunked"))
    elif request.has_body or request.values(b"content-length"):
        headers.append((b"Content-Length", str(request.body_length).encode()))
    if request.expects_continue and request.has_body:
        headers.append((b"Expect", b"100-continue"))
    if b"trailers" in _tokens(request.headers, b"te"):
        headers.append((b"TE", b"trailers"))
        options.append(b"TE")
    if options:
        headers.append((b"Connection", b", ".join(options)))
    if upgrade:
        headers.append((b"Upgrade", upgrade))
    if claims:
        headers += _our_claims(request)
    return TargetRequest(request.method, request.target, headers, is_chunked)


def upgrade_of(request: BrowserRequest) -> bytes:
    """Return the protocols that the target is asked to switch to; empty for an ordinary request.

    Protocols that are HTTP again (h2c) are removed, because their requests would pass unchecked. RFC 9110
    section 7.8 lets a server ignore any upgrade.
    """
    if wants_websocket(request):
        return _WEBSOCKET
    if request.method not in (b"GET", b"POST"):
        return b""
    asked = [protocol.strip() for protocol in request.upgrade.split(b",")]
    return b", ".join(
        protocol
        for protocol in asked
        if protocol and protocol.lower() != _WEBSOCKET and not protocol.lower().startswith(_TUNNELLED_HTTP)
    )


def trailers_forward(trailers: Headers) -> Headers:
    """Return the trailers of a request that the target may read. Programs may merge them into the headers."""
    return [(name, value) for name, value in trailers_back(trailers) if not _is_forgeable(name.lower())]


def trailers_back(trailers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the trailers that do not concern framing, routing or authorisation."""
    refused = _HOP_BY_HOP | _NOT_IN_TRAILERS
    return [(name, value) for name, value in trailers if name.lower() not in refused]


def _may_forward(name: bytes) -> bool:
    """Whether the header with this lower-case name is forwarded as it is.

    The length of the body is written from ``body_length``, so that it is the one that the exchange sends.
    """
    return name not in (b"content-length", b"host", b"trailer") and not _is_forgeable(name)


def _is_forgeable(name: bytes) -> bool:
    """Whether a target may read this lower-case name as a claim about the user, or as framing.

    CGI and WSGI replace each ``-`` of a name by ``_``. Some servers replace every character that is not a
    letter or digit. So a program reads ``X_Forwarded_For`` and ``X.Forwarded.For`` as ``X-Forwarded-For``.
    """
    normalised = _SEPARATOR.sub(b"-", name)
    if normalised in _CLAIMS or normalised.startswith(_CLAIM_PREFIXES):
        return True
    return normalised != name and (normalised in _HOP_BY_HOP or normalised in _FRAMING)


def _our_claims(request: BrowserRequest) -> Headers:
    return [
        (b"X-Forwarded-For", request.source.encode("ascii")),
        (b"X-Forwarded-Host", request.authority),
        (b"X-Forwarded-Proto", request.scheme),
    ]


def response_back(response: AnswerHead, hosts: Hosts) -> AnswerHead:
    """Return the answer for the browser. The adapter adds the framing that the browser's version needs."""
    kept = [
        (name, value)
        for name, value in _end_to_end(response.headers)
        if name.lower() not in _DROPPED_FROM_RESPONSE
    ]
    policy = (b"Content-Security-Policy", _frame_policy(response.headers))
    headers = [*map(_own_cookie, hosts.back(kept)), policy]
    return AnswerHead(response.status, headers, response.reason)


def interim_back(response: AnswerHead) -> AnswerHead:
    """Return an interim answer for the browser, such as 100, 102 or 103."""
    kept = [
        (name, value) for name, value in _end_to_end(response.headers) if name.lower() != b"content-length"
    ]
    return AnswerHead(response.status, [*map(_own_cookie, kept)], response.reason)


def _frame_policy(headers: Headers) -> bytes:
    """Return a policy that lets only pages of the same origin frame the answer.

    Browsers enforce this policy and each one of the target. A browser that sees ``frame-ancestors`` ignores
    ``X-Frame-Options``, so this policy repeats a ``DENY``.
    """
    is_denied = any(value.strip().lower() == b"deny" for value in header_values(headers, b"x-frame-options"))
    return b"frame-ancestors 'none'" if is_denied else b"frame-ancestors 'self'"


def switch_back(response: AnswerHead, asked: bytes) -> AnswerHead:
    """Return the 101 for the browser. Raises ``Refused`` unless it switches to a protocol of ``asked``."""
    chosen = b", ".join(header_values(response.headers, b"upgrade"))
    is_asked = set() < set(listed([chosen])) <= set(listed([asked]))
    if not is_asked or b"upgrade" not in _tokens(response.headers, b"connection"):
        raise Refused(
            Reason.TARGET_PROTOCOL, "the target switched to another protocol than the browser asked for"
        )
    upgrade = _WEBSOCKET if asked == _WEBSOCKET else chosen
    return AnswerHead(101, [*interim_back(response).headers, (b"Upgrade", upgrade)], response.reason)


def binds_connection(request: BrowserRequest, response: AnswerHead) -> bool:
    """Whether the target has logged in its connection, or is about to (NTLM, Negotiate)."""
    offers = header_values(response.headers, b"www-authenticate") + request.values(b"authorization")
    return any(offer.strip().lower().startswith(_OF_A_CONNECTION) for offer in offers)


def _own_cookie(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Remove ``Domain`` from a cookie, so that the browser does not send the cookie to other nodes."""
    name, value = header
    return (name, _COOKIE_DOMAIN.sub(b"", value)) if name.lower() == b"set-cookie" else header


def _end_to_end(headers: Headers) -> Headers:
    """Return the headers, spelled as received, without hop-by-hop headers and those in ``Connection``."""
    dropped = _HOP_BY_HOP | (_tokens(headers, b"connection") - {b"host", b"content-length"})
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def _tokens(headers: Headers, name: bytes) -> frozenset[bytes]:
    return frozenset(listed(header_values(headers, name)))


def wants_websocket(request: BrowserRequest) -> bool:
    """Whether the request asks for a WebSocket."""
    return request.method == b"GET" and _WEBSOCKET in listed([request.upgrade])


def check_web_request(request: BrowserRequest) -> None:
    """Raise ``Refused`` for a request that no browser sends to an origin server, or from another site."""
    if request.method in (b"CONNECT", b"TRACE"):
        raise Refused(Reason.METHOD_NOT_ALLOWED, f"{request.method.decode()} is not for the web entrance")
    if not request.target.startswith(b"/") and (request.method, request.target) != (b"OPTIONS", b"*"):
        raise Refused(Reason.BAD_REQUEST, "the request target is not a path; this is no forward proxy")
    if wants_websocket(request) and request.has_body:
        # The bytes after the head would be both the body and the first frames (RFC 6455, section 4.1).
        raise Refused(
            Reason.BAD_REQUEST, "a request for a WebSocket has no body, so it must not announce one"
        )
    refuse_cross_site(request.method, request.headers, request.authority)


def refuse_cross_site(
    method: bytes, headers: Sequence[tuple[bytes, bytes]], authority: bytes | None = None
) -> None:
    """Raise ``Refused`` if a page of another site caused this request. None: the authority is in ``Host``.

    Such a page would act with the user's rights. A link from another site may lead here. A script, a form or
    a frame of another site may not.

    Browsers send ``Origin`` with every POST, script and WebSocket, so an ``Origin`` with another host always
    refuses the request. Fetch Metadata (W3C) covers requests without an ``Origin`` or with ``Origin: null``,
    but browsers send it only to https and to ``localhost``.
    """
    if _OF_A_PAGE.isdisjoint([name.lower() for name, _ in headers]):
        return
    if authority is None:
        authority = b"".join(header_values(headers, b"host")[:1])
    site, mode = _last(headers, b"sec-fetch-site"), _last(headers, b"sec-fetch-mode")
    is_framed = _last(headers, b"sec-fetch-dest") in _FRAMES
    followed_link = mode == b"navigate" and method in (b"GET", b"HEAD") and not is_framed
    is_foreign = site in (b"cross-site", b"same-site") and not followed_link
    host = authority.decode("latin-1")
    origins = [value.decode("latin-1").lower() for value in header_values(headers, b"origin")]
    if is_foreign or not all(_is_host(origin, host) for origin in origins if origin != "null"):
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


def _last(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes:
    return b"".join(header_values(headers, name)[-1:]).strip().lower()


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
    return any(name.lower() == b"accept" and b"text/html" in value.lower() for name, value in headers)
