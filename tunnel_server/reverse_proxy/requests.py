"""Requests to targets: bytes of HTTP/1.1 from the parts of a request. No I/O.

The browser's HTTP version may permit what ends a line or a request in HTTP/1.1. So everything is checked here
again, and whatever would not arrive as it was meant raises ``Refused``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tunnel_core.reasons import Reason, Refused
from tunnel_server.reverse_proxy.messages import PATH, TOKEN, Headers

_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True, slots=True)
class TargetRequest:
    """The head of a request to a target. ``headers`` has the whole framing."""

    method: bytes
    target: bytes
    headers: Headers
    is_chunked: bool = False
    """Whether the body is sent in chunks."""


def encode_head(request: TargetRequest) -> bytes:
    """Return the head as bytes. Raises ``Refused`` for a part that HTTP/1.1 cannot carry."""
    if not TOKEN.fullmatch(request.method) or not PATH.fullmatch(request.target):
        raise Refused(
            Reason.BAD_REQUEST, "the method or the path has characters that HTTP/1.1 does not permit"
        )
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method, request.target), *_lines(request.headers), b"\r\n"]
    return b"".join(lines)


def encode_piece(piece: bytes, *, is_chunked: bool) -> bytes:
    """Return a piece of the body as bytes. ``piece`` is not empty, because an empty chunk ends a body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece


def encode_end(trailers: Sequence[tuple[bytes, bytes]], *, is_chunked: bool) -> bytes:
    """Return the end of the body as bytes. Trailers need chunks and are left out without them."""
    return b"".join([b"0\r\n", *_lines(trailers), b"\r\n"]) if is_chunked else b""


def _lines(headers: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    for name, value in headers:
        if not TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise Refused(Reason.BAD_REQUEST, "a header has characters that HTTP/1.1 does not permit")
    return [b"%b: %b\r\n" % header for header in headers]
