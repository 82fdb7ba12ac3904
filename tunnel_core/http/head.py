"""HTTP/1.1 heads: limits, refusal of ambiguous heads, and the form of a refusal's answer. No I/O.

h11 parses the heads. A head that h11 would repair is refused before, because a proxy or target may repair the
head differently (request smuggling). Such heads have a bare LF, a folded line, a control character, two
lengths, or a length beside chunked coding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

import h11

from tunnel_core.reasons import Reason, Refused

MAX_REASON_PHRASE = 200
"""Length limit, because some clients cut longer phrases. The body and the log have the whole sentence."""
REASON_HEADER = "qanat-reason"
"""Header with the reason's word, so that no program has to parse the sentence."""
_HEAD_END = b"\r\n\r\n"
# RFC 9110 section 5.5: field values hold no control characters other than HTAB; CR only before LF.
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_FOLDED = re.compile(rb"\r\n[ \t]")
_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:([^\r]*)", re.IGNORECASE)
_TLS_HANDSHAKE = 0x16


class HttpRefused(Refused):
    """A refusal whose answer has headers of its own, such as how to log in or when to retry."""

    def __init__(self, reason: Reason, detail: str, headers: Iterable[tuple[str, str]]) -> None:
        super().__init__(reason, detail)
        self.headers = tuple(headers)


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Bounds of one HTTP connection before and between requests. Sizes in bytes, times in seconds."""

    max_head_bytes: int = 16 * 1024
    max_headers: int = 100
    head_seconds: float = 10.0
    """Time from the first byte of a head to its end; for the first head, from the accept."""
    idle_seconds: float = 75.0
    """Time between two requests."""
    body_idle_seconds: float = 300.0
    """Time between two reads of a request's body."""
    answer_seconds: float = 30.0
    """Time to send the server's own answer to a client that reads slowly."""


def head_end(data: bytes | bytearray, limits: HeadLimits, start: int = 0) -> int:
    """Return the length of the head at the beginning of ``data``; 0 if the head is incomplete.

    ``start`` is the length of the part that an earlier call has checked. Raises ``Refused`` if the head is
    too long, or cannot become a valid head.
    """
    if data[:1] and data[0] <= 0x20:
        raise Refused(Reason.BAD_REQUEST, _why_no_request(data[0]))
    found = data.find(_HEAD_END, max(0, start - len(_HEAD_END)))
    end = found + len(_HEAD_END) if found >= 0 else 0
    if _BARE_LF.search(data, start, end or len(data)):
        raise Refused(Reason.BAD_REQUEST, "a line of the request head ends in a bare LF")
    if end > limits.max_head_bytes or (not end and len(data) >= limits.max_head_bytes):
        detail = f"the request head is longer than {limits.max_head_bytes} bytes"
        raise Refused(Reason.HEAD_TOO_LARGE, detail)
    return end


def _why_no_request(first: int) -> str:
    if first == _TLS_HANDSHAKE:
        return "this port uses plain HTTP, and a TLS handshake arrived: use http:// here"
    return "the request does not begin with a method"


def check_raw_head(head: bytes) -> None:
    """Raise ``Refused`` for a head that h11 would repair. ``head`` ends with its blank line."""
    if _FOLDED.search(head):
        raise Refused(Reason.BAD_REQUEST, "the request head has a folded line (RFC 9112 section 5.2)")
    if _FORBIDDEN.search(head):
        raise Refused(Reason.BAD_REQUEST, "the request head has a control character or a bare CR")
    lengths = _LENGTH.findall(head)
    if len(lengths) > 1 or (lengths and b"," in lengths[0]):  # h11 folds equal values into one
        raise Refused(Reason.BAD_REQUEST, "the request has more than one Content-Length")


def check_request(request: h11.Request, limits: HeadLimits) -> bool:
    """Return whether the request has a body.

    Raises ``Refused`` for too many headers, or for framing that two parsers may read differently.
    """
    if len(request.headers) > limits.max_headers:
        raise Refused(Reason.HEAD_TOO_LARGE, f"the request has more than {limits.max_headers} headers")
    if request.http_version not in (b"1.0", b"1.1"):
        raise Refused(Reason.BAD_REQUEST, "only HTTP/1.1 and HTTP/1.0 are supported")
    hosts, length, is_coded = 0, b"", False
    for name, value in request.headers:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            length = value  # h11 allows one value only
        elif name == b"transfer-encoding":
            is_coded = True
    if hosts > 1:
        raise Refused(Reason.BAD_REQUEST, "the request has more than one Host header")
    if length and is_coded:
        raise Refused(Reason.BAD_REQUEST, "the request has both Content-Length and Transfer-Encoding")
    if is_coded and request.http_version < b"1.1":
        raise Refused(Reason.BAD_REQUEST, "the request has Transfer-Encoding, which HTTP/1.0 does not know")
    if request.method == b"CONNECT" and (length or is_coded):
        raise Refused(Reason.BAD_REQUEST, "a CONNECT request has no body, so it must not announce one")
    return is_coded or length.strip(b"0") != b""


def header_values(
    message: h11.Request | h11.Response | h11.InformationalResponse, name: bytes
) -> list[bytes]:
    """Return all values of the header with this lower-case name."""
    return [value for key, value in message.headers if key == name]


def head_bytes(message: h11.Request | h11.Response | h11.InformationalResponse) -> int:
    """Return the approximate size of a parsed head."""
    return sum(len(name) + len(value) + 4 for name, value in message.headers)


def wording(error: h11.RemoteProtocolError) -> str:
    """Return h11's description of the error, without the stranger's bytes in it (a Python ``bytearray``)."""
    return str(error).partition(": bytearray(")[0]


def reason_phrase(refused: Refused) -> str:
    """Return the refusal's sentence as an HTTP reason phrase: printable ASCII, 200 characters at most.

    After a failed CONNECT, kubectl shows its user this phrase and nothing else.
    """
    printable = re.sub(r"[^\x20-\x7e]", "?", re.sub(r"\s+", " ", refused.detail).strip())
    if len(printable) > MAX_REASON_PHRASE:
        printable = printable[: MAX_REASON_PHRASE - 3] + "..."
    return printable


def refusal_body(refused: Refused, *, as_json: bool) -> tuple[str, bytes]:
    """Return content type and body of the answer to a refusal: ``word: sentence``, or both as JSON."""
    if as_json:
        answer = {"reason": refused.reason.word, "detail": refused.detail}
        return "application/json", json.dumps(answer).encode() + b"\n"
    text = " ".join(refused.detail.split())
    return "text/plain; charset=utf-8", f"{refused.reason.word}: {text}\n".encode()


def wants_json(request: h11.Request | None) -> bool:
    """Whether the request accepts JSON by name; ``*/*`` alone gets text, because people use curl."""
    if request is None:
        return False
    return any(b"application/json" in value.lower() for value in header_values(request, b"accept"))
