"""HTTP heads of the ``web`` entrance: headers that are removed, added or refused. No I/O.

h11 parses and rewrites both directions. Framing is never copied, so both sides see the same messages. This
prevents request smuggling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

import h11

from tunnel_core.reasons import Reason, Refused
from tunnel_server.reverse_proxy.messages import AnswerHead, BrowserRequest, Headers, header_values

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


def request_forward(request: BrowserRequest) -> h11.Request:
    """Return the request for the target.

    ``Host`` stays as the browser sent it. Services compare it with ``Origin`` before they accept a WebSocket,
    and build redirects and cookies from it. Those must lead back here, not to a name known only at the edge.
    """
    upgrade = wants_websocket(request)
    headers: Headers = [(b"Host", request.authority)] if request.authority else []
    headers += [
        (name, value) for name, value in _end_to_end(request.headers) if _may_forward(name.lower(), request)
    ]
    if request.body_length is None:
        headers.append((b"Transfer-Encoding", b"chunked"))
    # One stream carries one request, so the target can close its connection afterwards.
    headers.append((b"Connection", b"Upgrade" if upgrade else b"close"))
    if upgrade:
        headers.append((b"Upgrade", _WEBSOCKET))
    headers += _our_claims(request)
    return h11.Request(method=request.method, target=request.target, headers=headers)


def _may_forward(name: bytes, request: BrowserRequest) -> bool:
    """Whether the header with this lower-case name is forwarded as it is."""
    if name == b"content-length":
        return request.body_length is not None
    return name != b"host" and not _is_forgeable(name)


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


def response_back(response: AnswerHead) -> AnswerHead:
    """Return the answer for the browser. The adapter adds the framing that the browser's version needs."""
    dropped = _DROPPED_FROM_RESPONSE
    if header_values(response.headers, b"transfer-encoding"):
        dropped |= {b"content-length"}
    kept = [(name, value) for name, value in _end_to_end(response.headers) if name.lower() not in dropped]
    headers = [*map(_own_cookie, kept), (b"Content-Security-Policy", _frame_policy(response.headers))]
    return AnswerHead(response.status, headers, response.reason)


def _frame_policy(headers: Headers) -> bytes:
    """Return a policy that lets only pages of the same origin frame the answer.

    Browsers enforce this policy and each one of the target. A browser that sees ``frame-ancestors`` ignores
    ``X-Frame-Options``, so this policy repeats a ``DENY``.
    """
    is_denied = any(value.strip().lower() == b"deny" for value in header_values(headers, b"x-frame-options"))
    return b"frame-ancestors 'none'" if is_denied else b"frame-ancestors 'self'"


def switch_back(response: AnswerHead) -> AnswerHead:
    """Return the 101 for the browser. Raises ``Refused`` unless it switches to WebSocket."""
    upgrades = [value.strip().lower() for value in header_values(response.headers, b"upgrade")]
    if upgrades != [_WEBSOCKET] or b"upgrade" not in _tokens(response.headers, b"connection"):
        raise Refused(
            Reason.TARGET_PROTOCOL, "the target switched to another protocol than the browser asked for"
        )
    headers = [*map(_own_cookie, _end_to_end(response.headers)), (b"Upgrade", _WEBSOCKET)]
    return AnswerHead(101, headers, response.reason)


def _own_cookie(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Remove ``Domain`` from a cookie, so that the browser does not send the cookie to other nodes."""
    name, value = header
    return (name, _COOKIE_DOMAIN.sub(b"", value)) if name.lower() == b"set-cookie" else header


def _end_to_end(headers: Headers) -> Headers:
    """Return the headers, spelled as received, without hop-by-hop headers and those in ``Connection``."""
    dropped = _HOP_BY_HOP | (_tokens(headers, b"connection") - {b"host", b"content-length"})
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def _tokens(headers: Headers, name: bytes) -> frozenset[bytes]:
    return _listed(b",".join(header_values(headers, name)))


def _listed(values: bytes) -> frozenset[bytes]:
    return frozenset(token.strip().lower() for token in values.split(b",")) - {b""}


def wants_websocket(request: BrowserRequest) -> bool:
    """Whether the request asks for a WebSocket.

    Other upgrades are removed, because bytes that are not HTTP/1.1 (for example h2c) would pass unchecked.
    RFC 9110 section 7.8 lets a server ignore any upgrade.
    """
    return request.method == b"GET" and _WEBSOCKET in _listed(request.upgrade)


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
