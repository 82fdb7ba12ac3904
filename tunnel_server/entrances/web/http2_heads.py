"""Heads of HTTP/2: from a header list to a request, and from an answer to a header list. No I/O.

What HTTP/1.1 could read differently is refused, because the request goes on as HTTP/1.1: line ends, NUL and
other control characters, upper case in names, headers of one connection, ``Host`` beside another
``:authority``, lengths that are no number, the length of a tunnel (RFC 9113 sections 8.2 and 8.3, RFC 8441).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tunnel_core.reasons import Reason, Refused
from tunnel_server.reverse_proxy.messages import PATH, TOKEN, AnswerHead, BrowserRequest, Headers

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"(?:[^\x00-\x20\x7f](?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?")
_OF_ONE_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})
_SCHEMES = (b"http", b"https")


class MalformedHead(Exception):  # noqa: N818 - named by what happened
    """A head that RFC 9113 calls malformed. The stream is reset, because no answer is safe."""


def request_of(
    fields: Iterable[tuple[bytes, bytes]],
    *,
    is_end: bool,
    scheme: bytes,
    source: str,
    max_head_bytes: int,
    max_headers: int,
) -> BrowserRequest:
    """Return the request in a header list.

    ``is_end``: no body follows. ``scheme`` is that of the connection, ``source`` the user's address. Raises
    ``MalformedHead``, and ``Refused`` for a head that is valid and not served here.
    """
    pseudo, headers = _split(fields)
    if len(headers) > max_headers:
        raise Refused(Reason.HEAD_TOO_LARGE, f"the request has more than {max_headers} headers")
    if sum(len(name) + len(value) + 4 for name, value in headers) > max_head_bytes:
        raise Refused(Reason.HEAD_TOO_LARGE, f"the request head is longer than {max_head_bytes} bytes")
    method, upgrade = pseudo.get(b":method", b""), b""
    if not TOKEN.fullmatch(method):
        raise MalformedHead("the method is no token")
    if method == b"CONNECT":
        if b":protocol" not in pseudo:
            raise Refused(Reason.METHOD_NOT_ALLOWED, "CONNECT is not for the web entrance")
        method, upgrade = b"GET", pseudo[b":protocol"]  # RFC 8441: what a GET with Upgrade is in HTTP/1.1
        if not TOKEN.fullmatch(upgrade):
            raise MalformedHead("the protocol is no token")
        if any(name == b"content-length" for name, _ in headers):
            raise MalformedHead("an extended CONNECT has no body, so it must not announce one")
    elif b":protocol" in pseudo:
        raise MalformedHead("only CONNECT has :protocol")
    if pseudo.get(b":scheme") not in _SCHEMES or not PATH.fullmatch(pseudo.get(b":path", b"")):
        raise MalformedHead("the scheme or the path is missing or invalid")
    return BrowserRequest(
        method=method,
        scheme=scheme,
        authority=_authority(pseudo, headers),
        target=pseudo[b":path"],
        headers=_with_one_cookie(headers),
        body_length=0 if upgrade else _body_length(headers, is_end=is_end),
        expects_continue=any(n == b"expect" and v.lower() == b"100-continue" for n, v in headers),
        upgrade=upgrade,
        source=source,
    )


def _split(fields: Iterable[tuple[bytes, bytes]]) -> tuple[dict[bytes, bytes], Headers]:
    """Return pseudo-headers and headers, each checked by itself."""
    pseudo: dict[bytes, bytes] = {}
    headers: Headers = []
    for raw_name, raw_value in fields:
        name, value = bytes(raw_name), bytes(raw_value)
        if not _VALUE.fullmatch(value):
            raise MalformedHead("a value has a control character, or a blank at its end")
        if name.startswith(b":"):
            if name not in _PSEUDO or name in pseudo or headers:
                raise MalformedHead("a pseudo-header is unknown, doubled, or behind a header")
            pseudo[name] = value
        else:
            _check_name(name, value)
            headers.append((name, value))
    return pseudo, headers


def _check_name(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise MalformedHead("the name of a header is no token in lower case")
    if name in _OF_ONE_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
        raise MalformedHead("a header concerns one connection of HTTP/1.1")


def trailers_of(fields: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the trailers in a header list. Raises ``MalformedHead``."""
    pseudo, headers = _split(fields)
    if pseudo:
        raise MalformedHead("trailers have a pseudo-header")
    return headers


def _authority(pseudo: dict[bytes, bytes], headers: Headers) -> bytes:
    hosts = [value for name, value in headers if name == b"host"]
    authority = pseudo.get(b":authority", hosts[0] if hosts else b"")
    if len(hosts) > 1 or any(host != authority for host in hosts):
        raise MalformedHead("Host is doubled, or differs from :authority")
    return authority


def _body_length(headers: Headers, *, is_end: bool) -> int | None:
    lengths = [value for name, value in headers if name == b"content-length"]
    if len(lengths) > 1 or not all(value.isdigit() and len(value) < 19 for value in lengths):
        raise MalformedHead("Content-Length is doubled, or no number")
    if is_end:
        if lengths and int(lengths[0]):
            raise MalformedHead("a request without a body announces one")
        return 0
    return int(lengths[0]) if lengths else None


def _with_one_cookie(headers: Headers) -> Headers:
    """Return the headers with all ``Cookie`` lines in one, because HTTP/1.1 allows only one.

    RFC 9113 section 8.2.3: browsers divide them, so that the compression finds equal parts.
    """
    cookies = [value for name, value in headers if name == b"cookie"]
    if len(cookies) < 2:
        return headers
    others = [(name, value) for name, value in headers if name != b"cookie"]
    return [*others, (b"cookie", b"; ".join(cookies))]


def fields_of(head: AnswerHead) -> Headers:
    """Return the header list of an answer. A header that HTTP/2 does not permit is left out."""
    return [(b":status", str(head.status).encode()), *checked_fields(head.headers)]


def checked_fields(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """Return headers with names in lower case, without those that HTTP/2 does not permit."""
    lowered = [(name.lower(), value.strip(b" \t")) for name, value in headers]
    return [
        (name, value)
        for name, value in lowered
        if name not in _OF_ONE_CONNECTION and _NAME.fullmatch(name) and _VALUE.fullmatch(value)
    ]
