"""What a node asks of its server over HTTPS: roots, certificates (EST, RFC 7030), and the page for joiners.

Every request has a connection of its own, since what is trusted differs from one to the next.
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import h11
import trio

from certs.pkcs7 import read_certs_only
from certs.token import Token, login_text
from tunnel_agent.checks import CheckFailed
from tunnel_agent.network.server_path import ConnectionLost, ServerPath
from tunnel_core.http.server import REASON_HEADER, HttpClientConnection, exchange, header_values
from tunnel_core.names import join_host_port, split_host_port
from tunnel_core.reasons import Reason, Refused

T = TypeVar("T")

_EST = "/.well-known/est/"
_JOIN = "/api/v1/join"
_MAX_ANSWER_BYTES = 256 * 1024
_MAX_ADDRESSES = 32
_REASONS = {reason.word: reason for reason in Reason}


class ServerRefused(Refused):
    """The server said no, and why. ``retry_after_seconds`` is None unless it said when to come back."""

    def __init__(self, reason: Reason, detail: str, retry_after_seconds: float | None) -> None:
        super().__init__(reason, detail)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class JoinPage:
    """What a server says of itself to those who join. ``behind``: its clock less ours, in seconds."""

    trust_domain: str
    agents: tuple[str, ...]
    https: tuple[str, ...]
    behind: float


async def cacerts(way: ServerPath, context: ssl.SSLContext) -> list[bytes]:
    """All roots, and what leads to them (PEM), in no order. Raises ``CheckFailed`` or ``Refused``."""
    body = await _ask(way, context, _request(way, "GET", f"{_EST}cacerts"))
    return _read(lambda: read_certs_only(body), way)


async def join_page(way: ServerPath, context: ssl.SSLContext, now: Callable[[], datetime]) -> JoinPage:
    """``now`` gives UTC. Raises ``CheckFailed`` or ``Refused``."""
    before = now()
    body = await _ask(way, context, _request(way, "GET", _JOIN))
    middle = before + (now() - before) / 2
    return _read(lambda: parse_page(body, middle), way)


async def enrol(
    way: ServerPath, context: ssl.SSLContext, node: str, token: Token, request_body: bytes
) -> bytes:
    """The certificate (PEM) for a token. ``context`` must verify the server: the token goes over this.

    Raises ``CheckFailed`` or ``Refused``.
    """
    login = base64.b64encode(f"{node}:{login_text(token)}".encode()).decode()
    headers = [("authorization", f"Basic {login}")]
    return await _certificate(way, context, "simpleenroll", headers, request_body)


async def renew(way: ServerPath, context: ssl.SSLContext, request_body: bytes) -> bytes:
    """The next certificate (PEM) of whoever ``context`` shows. Raises ``CheckFailed`` or ``Refused``."""
    return await _certificate(way, context, "simplereenroll", [], request_body)


async def _certificate(
    way: ServerPath,
    context: ssl.SSLContext,
    operation: str,
    headers: list[tuple[str, str]],
    request_body: bytes,
) -> bytes:
    own = [*headers, ("content-type", "application/pkcs10"), ("content-transfer-encoding", "base64")]
    body = await _ask(way, context, _request(way, "POST", _EST + operation, own, request_body), request_body)
    return _read(lambda: b"".join(read_certs_only(body)), way)


def _request(
    way: ServerPath, method: str, path: str, headers: Sequence[tuple[str, str]] = (), body: bytes = b""
) -> h11.Request:
    length = [("content-length", str(len(body)))] if body else []
    standing = [("host", way.server), ("accept", "*/*"), ("connection", "close")]
    return h11.Request(method=method, target=path, headers=[*standing, *headers, *length])


async def _ask(way: ServerPath, context: ssl.SSLContext, request: h11.Request, body: bytes = b"") -> bytes:
    tls = await way.shake_hands(context)
    try:
        connection = HttpClientConnection(tls, peer=way.server)
        answered = exchange(connection, request, body, max_body_bytes=_MAX_ANSWER_BYTES)
        response, content = await way.in_time(answered, f"an answer from {way.server}")
        with contextlib.suppress(trio.BrokenResourceError):
            await tls.aclose()
    except Refused as refused:
        raise CheckFailed(refused.detail, way.hint) from None
    except trio.BrokenResourceError:
        raise ConnectionLost(f"{way.server} closed the connection", way.hint) from None
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await trio.aclose_forcefully(tls)
    if response.status_code != 200:
        raise _refusal(way, response, content)
    return content


def _refusal(
    way: ServerPath, response: h11.Response | h11.InformationalResponse, content: bytes
) -> Exception:
    words = [value.decode("ascii", "replace") for value in header_values(response, REASON_HEADER.encode())]
    reason = _REASONS.get(words[0]) if words else None
    if reason is None:
        said = f"{response.status_code} {bytes(response.reason).decode('ascii', 'replace')}".rstrip()
        return CheckFailed(f"{way.server} answered {said}, as no Qanat server of this version does", way.hint)
    detail = content.decode(errors="replace").strip().removeprefix(f"{reason.word}: ")
    return ServerRefused(reason, detail[:1000], _retry_after(response))


def _retry_after(response: h11.Response | h11.InformationalResponse) -> float | None:
    values = header_values(response, b"retry-after")
    return float(values[0]) if values and values[0].isdigit() and len(values[0]) < 6 else None


def _read(parse: Callable[[], T], way: ServerPath) -> T:
    try:
        return parse()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        detail = f"{way.server} answered with what cannot be read: {error}"
        raise CheckFailed(detail, f"{way.hint} is it of the same version as this agent?") from None


def parse_page(body: bytes, now: datetime) -> JoinPage:
    """Raises ``ValueError``, ``KeyError``, ``TypeError`` or ``RecursionError`` for what is no such page."""
    page = json.loads(body)
    time = datetime.fromisoformat(page["time"])
    return JoinPage(
        str(page["trust_domain"]),
        _addresses(page["agents"]),
        _addresses(page["https"]),
        (time - now).total_seconds(),
    )


def _addresses(found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise TypeError("it names addresses that are no texts")
    return tuple(join_host_port(*split_host_port(one)) for one in found[:_MAX_ADDRESSES])
