"""The parsers that read bytes before authentication: for each, a function of bytes for a fuzzer.

Each function accepts any bytes, and raises only where the product is wrong. A refusal in the parser's own
words is no fault. Any other exception is one, and so is an answer with another meaning when it is read again.
The projects OpenSSL and BoringSSL fuzz TLS itself.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Callable, Sequence

import h11
import trio
import trio.testing

from certs.pkcs7 import read_certs_only
from certs.requests import read_request, require_names
from certs.token import TokenMistyped, format_token, parse_token
from certs.x509 import Usage, describe, proven_leaf
from tests.support.fakes.packets import by_protobuf
from tunnel_agent.certificate.trust import pinned_root
from tunnel_core.http.server import HttpClientConnection, HttpConnection, exchange, serve_http
from tunnel_core.identity import Role, SpiffeId
from tunnel_core.names import Target, join_host_port, split_host_port
from tunnel_core.reasons import Reason, Refused
from tunnel_core.wire.codec import decode_packet, encode_packet
from tunnel_core.wire.frames import Malformed, Unknown
from tunnel_server.access.routing import route_authority, route_web_host, target_header
from tunnel_server.pki.enrolment.request import node_asked_for, parse_login
from tunnel_server.reverse_proxy.headers import check_web_request, request_forward, wants_html
from tunnel_server.reverse_proxy.hosts import Hosts, Origin
from tunnel_server.reverse_proxy.http1 import browser_request
from tunnel_server.reverse_proxy.requests import encode_head

MAX_BYTES = 20 * 1024
"""Sizes a little above the largest head and the largest certificate request that the server reads."""
_STATUS_LINE = re.compile(rb"HTTP/1\.1 [1-5][0-9]{2} [\x20-\x7e]*")
_IDENTITY = SpiffeId("test.internal", Role.NODE, "edge1")
_MAX_BODY_BYTES = 4096
_Seen = list[tuple[bytes, bytes, bytes]]


class _Nodes:
    """Three nodes; the name of one ends like another's, and one is a number."""

    _known = ("edge1", "shop.edge1", "42")

    def name_of(self, text: str) -> str | None:
        return text if text in self._known else None

    def nearest(self, text: str) -> str | None:
        return next((name for name in self._known if name[:1] == text[:1]), None)


# HTTP, from both ends.


def requests(data: bytes) -> None:
    """Read heads and bodies as every HTTP listener does. Pieces must have the meaning of the whole."""
    whole = _served([data])
    cut = (data[0] * 7 + len(data) // 3) % len(data) if data else 0
    assert _served([data[:cut], data[cut:]]) == whole, f"cut at {cut} it is another request"
    _, status_line = whole
    assert not status_line or _STATUS_LINE.fullmatch(status_line), status_line[:100]


def _served(pieces: Sequence[bytes]) -> tuple[_Seen, bytes]:
    """Return the requests that were understood (method, target, body), and the begin of the first answer."""
    seen: _Seen = []

    async def handle(http: HttpConnection, request: h11.Request) -> None:
        body = bytearray()
        if request.method == b"CONNECT":
            _quietly(lambda: route_authority(request.target.decode("ascii"), _Nodes(), _target(request)))
            body += await http.accept_connect()
        else:
            await _read_web_request(http, request, body)
        seen.append((request.method, request.target, b"" if http.has_switched else bytes(body)))

    def note(refused: Refused) -> None:
        assert refused.reason is not Reason.INTERNAL_ERROR, "a fault behind the parser"

    async def main() -> bytes:
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_all, theirs, pieces)
            nursery.start_soon(lambda: serve_http(ours, handle, on_refused=note))
            return await _receive_all(theirs)

    return seen, _run(main).partition(b"\r\n")[0]


async def _read_web_request(http: HttpConnection, request: h11.Request, body: bytearray) -> None:
    """Do with a request what the web entrance and EST do before authentication."""
    asked = browser_request(request, "192.0.2.1")
    check_web_request(asked)
    wants_html(request.headers)
    if _quietly(lambda: route_web_host(asked.host, "example.com")):
        hosts = Hosts(Origin(asked.scheme, asked.authority), Origin(b"http", b"localhost:8080"))
        encode_head(request_forward(asked, hosts, persists=True, claims=True))
    async for piece in http.receive_body():
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            raise Refused(Reason.BAD_CSR, "larger than anybody needs")
    await http.respond(200, "OK", [("content-type", "text/plain")], b"ok\n")


def _target(request: h11.Request) -> str | None:
    return target_header(request.headers)


def answers(data: bytes) -> None:
    """Read an answer as an agent does from a server or a proxy that it has not verified yet."""

    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_all, theirs, [data])
            nursery.start_soon(_receive_all, theirs)
            request = h11.Request(method="GET", target="/", headers=[("host", "server")])
            with contextlib.suppress(Refused, trio.BrokenResourceError):
                await exchange(HttpClientConnection(ours), request, max_body_bytes=_MAX_BODY_BYTES)
            await ours.aclose()

    _run(main)


async def _send_all(stream: trio.StapledStream, pieces: Sequence[bytes]) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for piece in filter(None, pieces):
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        await stream.send_eof()


async def _receive_all(stream: trio.StapledStream) -> bytes:
    received = bytearray()
    with contextlib.suppress(trio.BrokenResourceError):
        while piece := await stream.receive_some():
            received += piece
    return bytes(received)


def _run(main: Callable[[], object]) -> bytes:
    """Run with a virtual clock, so that a wait for a deadline takes no time."""
    result = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return result or b""


def _quietly(parse: Callable[[], object]) -> bool:
    """Whether the parser accepted the input."""
    with contextlib.suppress(Refused):
        parse()
        return True
    return False


# Names, logins, tokens.


def texts(data: bytes) -> None:
    """Read one line of text: names of all kinds, the login of EST, the token in it."""
    text = data.decode("latin-1")
    _names(text)
    _login(data)
    with contextlib.suppress(TokenMistyped):
        assert format_token(parse_token(text)) == text.strip().lower()


def _names(text: str) -> None:
    """Read SPIFFE IDs, targets, addresses, CONNECT authorities and web hosts, and write them the same."""
    with contextlib.suppress(ValueError):
        assert str(SpiffeId.parse(text)) == text
    with contextlib.suppress(ValueError):
        target = Target.parse(text)
        assert Target.parse(str(target)) == target
    with contextlib.suppress(ValueError):
        address = split_host_port(text)
        assert split_host_port(join_host_port(*address)) == address
    _quietly(lambda: route_authority(text, _Nodes()))
    _quietly(lambda: route_authority("edge1:1", _Nodes(), text))
    _quietly(lambda: route_web_host(text, "example.com"))


def _login(header: bytes) -> None:
    with contextlib.suppress(Refused):
        login = parse_login(header)
        assert login.node in ("", login.user)
        node_asked_for((login.password,), (login.user,), login)


# Certificates, and requests for them.


def certificate_requests(data: bytes) -> None:
    """Read certificate requests (PKCS #10) as DER, PEM or base64."""
    with contextlib.suppress(Refused):
        request = read_request(data)
        assert len(request.key_sha256) == 64
        require_names(request, _IDENTITY)


def certificates(data: bytes) -> None:
    """Read the roots that an unverified server sends, and leaves, which TLS verifies and Qanat reads."""
    with contextlib.suppress(ValueError):
        pinned_root(read_certs_only(data), bytes(32))
    with contextlib.suppress(Refused):
        proven_leaf(data, usage=Usage.CLIENT)
    with contextlib.suppress(ValueError):
        assert describe(data).ends.tzinfo is datetime.UTC


# The wire.


def packets(data: bytes) -> None:
    """Read packets of agents before the server has checked their certificate, and compare with protobuf."""
    packet, expected = decode_packet(data), by_protobuf(data)
    if isinstance(packet, Malformed):
        assert expected is None or _STRICTER.search(packet.detail), (packet, expected)
        return
    assert packet == expected
    if not any(isinstance(frame, Unknown) for frame in packet.frames):
        assert decode_packet(encode_packet(*packet)) == packet


_STRICTER = re.compile("too many|longer than|more than|too large|has wire type|not alone")
"""Reasons for which Qanat refuses, on purpose, what protobuf reads."""

TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one for one in (requests, answers, texts, certificate_requests, certificates, packets)
}
